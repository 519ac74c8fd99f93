"""The console's pages: what each shows, and that nothing others wrote becomes part of a page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from mimids.ds.commands import command_named
from mimids.ds.commands.performing import perform
from mimids.http.console import overview
from mimids.http.console.parts import Cell, CodeText, Hyperlink
from mimids.http.console.rendering import PAGES
from mimids.store.overview import GroupTotals, PeerSummary
from mimids.store.reports import reference_of
from mimids.values import Milliseconds
from mimids.wire.base64url import base64url
from mimids.wire.ids import GroupId, ProviderId
from mimids.wire.messages import SendRequest
from tests.support.consoles import Browser, links, parsed, texts
from tests.support.federation import Room, device
from tests.support.provider import Assembled
from tests.support.reports import report
from tests.support.stored import provider, rows

ALL = [
    *(path for path, _ in PAGES),
    "/console/groups/a.example/{id}",
    "/console/groups/a.example/{id}/contents",
    "/console/users/alice",
    "/console/providers/b.example",
    "/console/reports/1",
    "/console/commands/user/add",
    "/console/commands/group/terminate",
    "/console/commands/user/list",
    "/console/leave",
]


async def command(running: Assembled, name: str, **given: Any) -> Any:
    return await perform(running.services, command_named(name), given, "test")


async def write_all(running: Assembled, requests: Iterable[SendRequest]) -> None:
    for request in requests:
        await running.services.hub.send(request, device(running))


async def fill(running: Assembled) -> str:
    """Store something of each kind; return the id of the group in base64url."""
    room = Room()
    await running.services.hub.create_group(room.creation(), device(running))
    await write_all(running, [room.send("one"), room.send("two")])
    await command(running, "token issue", user="alice", scheme="shared", label="<b>card</b>")
    await command(running, "ban add", subject="b.example", reason="<i>spam</i>")
    await command(running, "limit mute", user="alice")
    accused = report(note="<b>pills</b>", accused="mimi://b.example/u/bob")
    await running.services.reports.receive(accused, device(running))
    return base64url(room.group_id)


@pytest.mark.parametrize("path", ALL)
async def test_a_page_may_load_nothing_from_elsewhere_and_runs_only_our_script(tmp_path: Path, path: str) -> None:
    async with provider(tmp_path, federation={"allow": ["b.example"]}) as (running, _):
        id_ = await fill(running)
        answer = await Browser.on(running).get(path.replace("{id}", id_))
        assert answer.status == 200, answer.body.decode()
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"
        page = parsed(answer.body)
        tags = {each.tag.rpartition("}")[2] for each in page.iter()}
        assert not tags & {"b-", "i", "img", "iframe", "object", "style"}
        assert [script.text for script in page.iter("script")] == [None]
        for each in page.iter():
            assert not [name for name in each.attrib if name.startswith("on") or name == "style"]
            for name in ("href", "src", "action"):
                assert re.match("/console|#|[?]|$", each.attrib.get(name, "")), each.attrib[name]


async def test_files_of_pages_are_served_under_names_that_change_with_them(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, _):
        browser = Browser.on(running)
        page = parsed((await browser.get("/console")).body)
        urls = [each.attrib["href"] for each in page.iter("link")] + [
            each.attrib["src"] for each in page.iter("script")
        ]
        for url in urls:
            answer = await browser.get(url)
            assert (answer.status, len(answer.body) > 100) == (200, True)
            assert "immutable" in answer.headers["cache-control"]
        assert (await browser.get("/console/static/app.py")).status == 404


async def test_the_page_of_a_new_provider_says_what_will_stand_there(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, _):
        shown = texts((await Browser.on(running).get("/console")).body)
        assert {"no groups yet", "no other provider is known yet", "no open reports"} <= set(shown)
        assert "1 device without KeyPackages" in shown


async def test_a_group_is_linked_and_drawn_and_its_name_is_only_text(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, clock):
        room = Room()
        room.group_id = GroupId(b"<script>alert(1)</script>")
        await running.services.hub.create_group(room.creation(), device(running))
        clock.advance(86_400)
        await write_all(running, [room.send("one"), room.send("two")])
        browser = Browser.on(running)
        pages = ("/console", "/console/groups", "/console/groups?search=%3Cscript")
        (link,) = {links((await browser.get(page)).body)["<script>alert(1)</script>"] for page in pages}
        shown = texts((await browser.get(link)).body)
        assert room.key.mask(32).hex()[:8] in shown
        assert {"opened", "03-17 17:46Z", "03-18 17:46Z"} <= set(shown), "opened, and the last message"


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/console/groups/a.example/Z3JvdXA", 404, "not-found"),
        ("/console/groups/a.example/+++", 400, "malformed"),
        ("/console/groups/a.example/Z3JvdXA/contents", 404, "not-found"),
        ("/console/groups/a.example/+++/contents", 404, "not-found"),
        ("/console/users/nobody", 404, "not-found"),
        ("/console/providers/z.example", 404, "not-found"),
        ("/console/reports/7", 404, "not-found"),
        ("/console/commands/user/fly", 404, "not-found"),
        ("/console/nothing", 404, "not-found"),
        ("/console//users", 404, "not-found"),
    ],
)
async def test_what_is_not_there_is_a_page_that_says_so(tmp_path: Path, path: str, status: int, code: str) -> None:
    async with provider(tmp_path) as (running, _):
        answer = await Browser.on(running).get(path)
        assert answer.status == status
        assert code in texts(answer.body)
        assert running.log.lines[-1]["code"] == code


async def test_a_page_is_logged_by_its_kind_and_one_that_refreshes_itself_is_only_counted(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, _):
        browser = Browser.on(running)
        await browser.get("/console/users/alice")
        assert running.log.lines[-1]["route"] == "console-user"
        assert "alice" not in str(running.log.lines)
        lines = len(running.log.lines)
        await browser.get("/console/users/alice", mimids_refresh="1")
        assert len(running.log.lines) == lines
        await browser.get("/console/users/nobody", mimids_refresh="1")
        await browser.post("/console/commands/user/add", {}, mimids_refresh="1")
        assert [line["code"] for line in running.log.lines[lines:]] == ["not-found", "no-session"]
        assert running.services.telemetry.requests()["console-user", "ok"] == 2


@pytest.mark.parametrize("host", ["a.example", "evil.example:8445", ""])
async def test_a_page_under_another_name_is_refused(tmp_path: Path, host: str) -> None:
    async with provider(tmp_path) as (running, _):
        answer = await Browser.on(running).get("/console", host=host)
        assert answer.status == 400
        assert "alice" not in answer.body.decode()


async def test_a_fault_of_ours_shows_an_id_and_the_log_has_the_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with provider(tmp_path) as (running, _):
        browser = Browser.on(running)
        await browser.get("/console")
        monkeypatch.setattr("mimids.store.listing.users_from", lambda *_, **__: 1 / 0)
        answer = await browser.get("/console/users")
        assert answer.status == 500
        assert "ZeroDivisionError" not in answer.body.decode()
        failed = next(line for line in running.log.lines if line["event"] == "a handler failed")
        assert "ZeroDivisionError" in failed["exception"]
        assert failed["id"] in answer.body.decode()


# --- lists ------------------------------------------------------------------------------------------------------


async def test_users_are_listed_in_pages_and_found_by_their_beginning(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, _):
        names = [f"u{n:03}" for n in range(120)]
        await command(running, "user add", users=names)
        browser, path, seen = Browser.on(running), "/console/users", []
        while path:
            found = links((await browser.get(path)).body)
            seen += [text.rpartition("/")[2] for text in found if text.startswith("mimi:")]
            path = found.get("Next page", "")
        assert seen == ["alice", *names]
        for search in ("u11", "mimi://a.example/u/u11"):
            found = links((await browser.get(f"/console/users?search={quote(search)}")).body)
            assert [text for text in found if "/u/" in text] == [f"mimi://a.example/u/u11{n}" for n in range(10)]
        assert "no user's name begins with zz" in texts((await browser.get("/console/users?search=zz")).body)


async def test_groups_are_listed_in_pages_and_found_by_their_beginning(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, _):
        for n in range(60):
            room = Room(f"{n:03}")
            await running.services.hub.create_group(room.creation(), device(running))
        browser = Browser.on(running)
        first = links((await browser.get("/console/groups")).body)
        second = links((await browser.get(first["Next page"])).body)
        assert (len(first) - 1, len(second)) == (50, 10)
        assert not set(first) & set(second)
        name = next(iter(second))
        for search in (name, name.rpartition("/")[2], base64url(name.encode())):
            assert list(links((await browser.get(f"/console/groups?search={quote(search)}")).body)) == [name]


async def test_tokens_are_listed_in_pages(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, _):
        for _ in range(60):
            await command(running, "token issue", user="alice", scheme="shared")
        browser = Browser.on(running)
        page = (await browser.get("/console/tokens")).body
        rest = (await browser.get(links(page)["Next page"])).body
        assert [len([row for row in parsed(each).iter("tr")]) for each in (page, rest)] == [51, 11]


async def test_pages_of_users_and_devices_show_what_was_stored(tmp_path: Path) -> None:
    async with provider(tmp_path) as (running, _):
        await fill(running)
        browser = Browser.on(running)
        assert {"phone", "<b>card</b>"} <= set(texts((await browser.get("/console/users/alice")).body))
        assert "<i>spam</i>" in texts((await browser.get("/console/policy")).body)
        assert "<b>pills</b>" in texts((await browser.get("/console/reports")).body)
        one = texts((await browser.get("/console/reports/1")).body)
        assert "mimi://b.example/u/bob" in one
        (digest,) = (row[0] for row in await rows(running, "SELECT digest FROM reports"))
        assert str(reference_of(digest)) in one, "as digits, which an operator can copy"
        assert "MiB" in " ".join(texts((await browser.get("/console/health")).body))


# --- the overview -----------------------------------------------------------------------------------------------


def words(cell: Cell) -> str:
    if isinstance(cell, Hyperlink | CodeText):
        return cell.text
    return str(cell) if isinstance(cell, str | int) else " ".join(map(words, cell or ()))  # type: ignore[arg-type]


def seen(**changes: Any) -> overview.Overview:
    fields: dict[str, Any] = {
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
        "totals": GroupTotals(0, 0, 0),
    }
    return overview.Overview(**(fields | changes))


def alerts(**changes: Any) -> list[str]:
    return [words(each.what) for each in overview.alerts(seen(**changes))]


def test_each_alert_is_shown_or_there_is_none() -> None:
    assert alerts() == []
    peer = PeerSummary(ProviderId("b.example"), 1, 7, 9, Milliseconds(5000), 0, 0, 0, 2, Milliseconds(0))
    for changes, said in (
        ({"writable": False}, "The disk takes no writes"),
        ({"requests": Counter({("send", "internal"): 2})}, "2 requests failed by an error of this server"),
        ({"peers": [peer]}, "b.example permanently refuses pushes of 2 partitions"),
        ({"peers": [peer]}, "b.example does not answer since 1970-01-01 00:00Z"),
        ({"held_groups": 1}, "1 group held since a restore"),
    ):
        assert said in alerts(**changes)


def test_refusals_are_counted_by_reason() -> None:
    requests = Counter({("send", "ok"): 9, ("send", "policy"): 2, ("join", "policy"): 1, ("push", "closed"): 4})
    refused = next(each for each in overview.sections(seen(requests=requests)) if each.id == "refused")
    (row,) = refused.tables[0].rows
    assert list(map(words, row)) == ["policy", "3", "refused by policy", "send 2, join 1"]
