"""The console: what it draws of a group's partitions, and that nothing others wrote becomes part of a page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given

from mimids.ds.groups.tree_layout import lay_out
from mimids.http.api.operator import HOSTS
from mimids.http.console import pages, tree
from mimids.http.console.endpoints import CONSOLE
from mimids.http.console.markup import Markup, element
from mimids.http.console.tree import draw
from mimids.store.overview import PartitionSummary, PeerSummary
from mimids.values import Milliseconds
from mimids.wire.base64url import base64url
from mimids.wire.ids import GroupId, ProviderId
from mimids.wire.messages import SendRequest
from tests.ds.upkeep.test_retention import provider
from tests.support.federation import Room, device
from tests.support.inmemory import Answered, InMemory
from tests.support.provider import Assembled
from tests.support.summaries import histories, summary


@given(histories())
def test_every_drawing_is_xml(partitions: list[PartitionSummary]) -> None:
    ET.fromstring(draw(lay_out(partitions)))  # noqa: S314  # our own output is no threat


def test_a_live_fork_has_a_ring_around_it() -> None:
    children = [summary(2, 1), summary(3, 1)]
    assert 'class="fork"' in draw(lay_out([summary(1, None, live_fork=True), *children]))
    assert 'class="fork"' not in draw(lay_out([summary(1, None), *children]))


def test_text_is_never_markup() -> None:
    assert element("b", "<i>&", Markup("<u></u>"), ["a", 1, None], title='"x"', hidden=True, class_=None) == (
        '<b title="&quot;x&quot;" hidden>&lt;i&gt;&amp;<u></u>a1</b>'
    )


def test_the_style_sheet_knows_the_drawing() -> None:
    assert f"height: {tree.ROW_PIXELS}px" in pages.STYLE
    assert {f".lane{n}" for n in range(tree.COLOURS)} <= set(re.findall(r"\.lane\d", pages.STYLE))


async def ask(running: Assembled, path: str) -> Answered:
    return await InMemory(running.app(CONSOLE, hosts=HOSTS)).ask("GET", path)


def parsed(page: bytes) -> ET.Element:
    """Return the page as XML, which ours are but for what HTML leaves open."""
    text = re.sub(r"(<meta[^>]*)>", r"\1/>", page.decode().removeprefix("<!doctype html>"))
    return ET.fromstring(text)  # noqa: S314  # the same


def texts(page: bytes) -> list[str]:
    return [text.strip() for text in parsed(page).itertext() if text.strip()]


async def write_all(running: Assembled, requests: Iterable[SendRequest]) -> None:
    for request in requests:
        await running.services.hub.send(request, device(running))


async def test_the_page_of_a_new_provider_says_what_will_stand_there(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, _):
        answer = await ask(running, "/console")
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert {"no groups yet", "no other provider is known yet", "no open reports"} <= set(texts(answer.body))
        assert "1 device without KeyPackages" in texts(answer.body)


@pytest.mark.parametrize("path", ["/console", "/console/groups/a.example/{id}"])
async def test_a_page_may_fetch_run_and_send_nothing(tmp_path: Path, path: str) -> None:
    async with provider(tmp_path) as (running, _):
        room = Room()
        await running.services.hub.create_group(room.creation(), device(running))
        answer = await ask(running, path.replace("{id}", base64url(room.group_id)))
        assert answer.status == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src" not in policy
        tags = {each.tag.rpartition("}")[2] for each in parsed(answer.body).iter()}
        assert not tags & {"script", "link", "img", "form", "iframe", "object"}
        assert not [name for each in parsed(answer.body).iter() for name in each.attrib if name.startswith("on")]
        (style,) = (each.text for each in parsed(answer.body).iter("style"))
        assert style == pages.STYLE


async def test_a_group_is_linked_and_drawn_and_its_name_is_only_text(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, _):
        room = Room()
        room.group_id = GroupId(b"<script>alert(1)</script>")
        await running.services.hub.create_group(room.creation(), device(running))
        await write_all(running, [room.send("one"), room.send("two")])
        overview = await ask(running, "/console")
        (link,) = (each for each in parsed(overview.body).iter("a"))
        assert link.text == "<script>alert(1)</script>"
        shown = await ask(running, link.attrib["href"])
        assert shown.status == 200
        assert "2" in texts(shown.body)
        assert room.key.mask(32).hex()[:8] in texts(shown.body)


@pytest.mark.parametrize(
    ("path", "problem"),
    [("/console/groups/a.example/Z3JvdXA", "not-found"), ("/console/groups/a.example/+++", "malformed")],
)
async def test_a_group_that_is_not_there_is_a_problem(tmp_path: Path, path: str, problem: str) -> None:
    async with provider(tmp_path) as (running, _):
        assert (await ask(running, path)).problem == problem


def overview(**changes: Any) -> list[str]:
    seen: dict[str, Any] = {
        "provider": ProviderId("a.example"),
        "version": "1",
        "now": Milliseconds(0),
        "writable": True,
        "groups": (),
        "peers": (),
        "stock": (),
        "devices": 0,
        "devices_without_stock": 0,
        "held_groups": 0,
        "reports": (),
        "requests": Counter(),
    }
    return texts(pages.overview_page(pages.Overview(**(seen | changes))).encode())


def test_what_needs_somebody_is_said_and_else_that_nothing_does() -> None:
    well = "All is well: nothing here needs you."
    assert well in overview()
    peer = PeerSummary(ProviderId("b.example"), 1, 7, 9, Milliseconds(5000), 0, 0, 0, 2, Milliseconds(0))
    for changes, said in (
        ({"writable": False}, "The disk takes no writes"),
        ({"requests": Counter({("send", "internal"): 2})}, "2 requests ended in a fault of this server"),
        ({"peers": [peer]}, "b.example refuses 2 partitions for good"),
        ({"peers": [peer]}, "b.example does not answer since 1970-01-01 00:00Z"),
        ({"held_groups": 1}, "1 group held since a restore"),
    ):
        assert said in overview(**changes)
        assert well not in overview(**changes)


def test_refusals_are_counted_by_reason() -> None:
    requests = Counter({("send", "ok"): 9, ("send", "policy"): 2, ("join", "policy"): 1, ("push", "closed"): 4})
    said = overview(requests=requests)
    assert said[said.index("policy") :][1:4] == ["3", "refused by policy", "send 2, join 1"]
