"""The console in a browser: its pages at two widths in light and dark, each act once, and what must not act.

The provider has three groups, one with a fork, and another provider is down. `make screenshots` keeps the pictures, as
docs/console/ has them; look at them whenever this changes.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import attrs
import pytest
import trio

from mimids.client import Problem
from mimids.ds.commands import COMMANDS
from mimids.testing import PretendGroup, Provider, Session
from mimids.wire.ids import GroupId
from tests.support.barriers import AXE, AXE_RUN, wait
from tests.support.chromium import BROWSER, Page, chromium
from tests.support.console_acts import BANNED, MANUAL, MESSAGE_BYTES, acts, other_origin, stage
from tests.support.stage import HUB, NAMES, Stage, eventually, staged

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="wants Chromium")]

WIDTHS = (400, 1280)
# Pictures that docs/ shows, by page, width and colour scheme.
KEPT = {
    ("overview", 1280, "light"): "overview-light",
    ("overview", 1280, "dark"): "overview-dark",
    ("fork", 1280, "light"): "fork-light",
    ("fork", 1280, "dark"): "fork-dark",
    ("user", 400, "dark"): "user-narrow-dark",
    ("token issue", 1280, "light"): "form-light",
}
FORM_TOKEN = "document.forms[0].elements['form-token'].value"
FORKED = "mimi://a.example/g/room-public"
LONG = "mimi://a.example/g/allotments"
SMALL = "mimi://a.example/g/book-club"


def called(name: str) -> PretendGroup:
    return attrs.evolve(PretendGroup.at(HUB), group_id=GroupId(name.encode()))


async def talk(stage: Stage, group: PretendGroup, epochs: int) -> None:
    """Fill a group with Alice's messages and commits; Bob's provider follows its first and its last epochs."""
    await stage.alice.create_group(group.creation())
    for epoch in range(epochs):
        for n in range(epoch * epoch % 7):
            await stage.alice.send(HUB, group.message(b"%d" % n))
        if epoch in (0, epochs - 2, epochs - 1):
            await stage.devices["bob"].receive(HUB, group.key)
        commit, group = group.commit()
        await stage.alice.send(HUB, commit)
    await stage.alice.send(HUB, group.message(b"the newest"))


async def play(stage: Stage) -> None:
    """Replay the recorded fork with its refusals, terminate a branch, and send more messages to another one."""
    await stage.create()
    sent = [recorded for recorded in stage.recording.messages() if recorded.line["kind"] != "control"]
    for recorded in sent:
        with suppress(Problem):
            await stage.offer(recorded)
    of_branch = {branch: [each for each in sent if each.line.get("branch") == branch] for branch in "BC"}
    lost = of_branch["B"][1].key.mask(32).hex()
    stage.federation[HUB].command("group terminate", group=FORKED, partition=lost, why="stale fork, both sides asked")
    stage.federation[NAMES[2]].kill()
    *_, last = (each.next_key for each in of_branch["C"] if each.line["kind"] == "commit" if each.next_key is not None)
    group = attrs.evolve(called(FORKED), key=last, epoch=10)
    for n in range(3):
        await stage.alice.send(HUB, group.message(b"%d" % n))


@asynccontextmanager
async def scene(session: Session) -> AsyncIterator[Provider]:
    """Yield a.example with data of all kinds for the console."""
    async with staged("public", session, config={"limits": {"device_sends_per_second": 0}}) as stage:
        for name, recorded in stage.recording.key_packages.items():
            await stage.devices[name].upload([recorded.octets])
        await talk(stage, called(LONG), 50)
        await talk(stage, called(SMALL), 4)
        no_commit_leads_here = called(SMALL).message(b"?")
        await stage.alice.send(HUB, no_commit_leads_here)
        await play(stage)
        note = "advertises <b>pills</b> in every group"
        await stage.alice.report(HUB, "mimi://b.example/u/bob", "spam", note=note)
        a = stage.federation[HUB]

        async def c_is_given_up() -> bool:
            return a.metrics()['mimids_peer_circuit_open{peer="c.example"}'] == 1

        await eventually(c_is_given_up, 30)
        yield a


# --- looks ------------------------------------------------------------------------------------------------------

# What is wider than its place, apart from texts that are cut with an ellipsis and have a title.
CLIPPED = """[...document.querySelectorAll('main *, header *, footer *')].filter(each =>
  each.scrollWidth > each.clientWidth + 1 && getComputedStyle(each).display !== 'inline' && !each.closest('svg')
  && getComputedStyle(each).overflowX !== 'visible' && !each.closest('.unseen, thead, [title], .badge')
).map(each => each.outerHTML.slice(0, 200))"""


def pages(page: Page, a: Provider) -> dict[str, str]:
    """Return the path of each page by name."""
    page.open(f"{a.operator_url}/console")
    links = {name: path for path, name in re.findall(r'href="(/console/groups/[^"]+)"[^>]*>([^<]+)</a>', page.html())}
    return {
        "overview": "/console",
        "groups": "/console/groups",
        "fork": links[FORKED],
        "long": links[LONG],
        "detached": links[SMALL],
        "contents": f"{links[FORKED]}/contents",
        "providers": "/console/providers",
        "provider": "/console/providers/c.example",
        "users": "/console/users",
        "user": "/console/users/alice",
        "tokens": "/console/tokens",
        "reports": "/console/reports",
        "report": "/console/reports/1",
        "policy": "/console/policy",
        "health": "/console/health",
        "audit": "/console/audit",
        "commands": "/console/commands",
        "token issue": "/console/commands/token/issue?user=alice",
        "user list": "/console/commands/user/list",
        "leave": "/console/leave",
        "refused": "/console/users/nobody",
    }


def look_at_all(a: Provider, directory: Path) -> None:
    """Take a picture of each page at each width in each scheme, and check what a program can see of it."""
    a.command("token issue", user="alice", scheme="unique", label="bob", expires_at=2_000_000_000_000)
    a.command("ban add", subject="mimi://b.example/u/mallory", reason="spam")
    a.command("limit mute", user="mimi://c.example/u/carol", group=SMALL)
    kept = os.environ.get("MIMIDS_SCREENSHOTS")
    with chromium() as page:
        page.open(a.command("console")["link"])
        for name, path in pages(page, a).items():
            for width in WIDTHS:
                pictures = set()
                for scheme in ("light", "dark"):
                    page.screen(width, dark=scheme == "dark")
                    page.open(a.operator_url + path)
                    where = f"{name} at {width} px, {scheme}"
                    assert page.evaluate("document.documentElement.scrollWidth") <= width, where
                    assert page.evaluate(CLIPPED) == [], where
                    assert page.events("Log.entryAdded") == [] or name == "refused", where
                    picture = directory / f"{name.replace(' ', '-')}-{width}-{scheme}.png"
                    page.picture(picture)
                    pictures.add(picture.read_bytes())
                    if kept and (name, width, scheme) in KEPT:
                        Path(kept, f"{KEPT[name, width, scheme]}.png").write_bytes(picture.read_bytes())
                assert len(pictures) == 2, f"{name} is the same in dark and light"


def find_barriers(a: Provider) -> dict[str, Any]:
    """Return what axe-core finds on each page that some people could not use."""
    axe, found = AXE.read_text(encoding="utf-8"), {}
    with chromium() as page:
        page.open(a.command("console")["link"])
        for name, path in pages(page, a).items():
            page.open(a.operator_url + path)
            page.evaluate(f"{axe}; null")
            for width in WIDTHS:
                for dark in (False, True):
                    page.screen(width, dark=dark)
                    results = page.evaluate(AXE_RUN)
                    assert results["passes"] > 5, "it looked at the page"
                    if results["violations"]:
                        found[f"{name} at {width} px, {'dark' if dark else 'light'}"] = results["violations"]
    return found


async def test_pages_show_what_is_stored_and_nothing_is_clipped(mimids_session: Session, tmp_path: Path) -> None:
    async with scene(mimids_session) as a:
        await trio.to_thread.run_sync(read_some, a)
        await trio.to_thread.run_sync(look_at_all, a, tmp_path)


def read_some(a: Provider) -> None:
    """Look for what was stored on some pages."""
    with chromium() as page:
        page.screen(1280)
        paths = pages(page, a)
        page.open(f"{a.operator_url}/console")
        overview = page.text()
        assert "<b>pills" in overview
        assert "c.example does not answer" in overview
        page.open(a.operator_url + paths["long"])
        assert "45 epochs" in page.text()
        page.open(a.operator_url + paths["fork"])
        forked = page.text()
        assert "live fork" in forked
        assert "stale fork, both sides asked" in forked
        partitions = a.read(
            "SELECT count(*) FROM partitions p JOIN groups g ON g.id = p.group_ref WHERE g.group_id = ?",
            (FORKED.encode(),),
        )
        assert page.evaluate("document.querySelectorAll('.tree tbody tr').length") == partitions[0][0]
        page.open(f"{a.operator_url}/console/users")
        a.add_user("zed")
        wait(lambda: "zed" in page.text())  # without a reload


@pytest.mark.skipif(not AXE.is_file(), reason="wants axe-core: npm ci in tests/support/node")
async def test_no_page_has_a_barrier_that_axe_finds(mimids_session: Session) -> None:
    async with scene(mimids_session) as a:
        assert await trio.to_thread.run_sync(find_barriers, a) == {}


# --- acts -------------------------------------------------------------------------------------------------------


def audited(a: Provider) -> list[tuple[str, str]]:
    return [(actor.partition(" ")[0], command) for actor, command in a.read("SELECT actor, command FROM audit")]


def path_of(command: str) -> str:
    return f"/console/commands/{command.replace(' ', '/')}"


# The forms of all acts in the session of the page, filled in with their samples: pairs of URL and body.
FILLED = """Promise.all(%s.map(async ([url, fields]) => {
  const page = new DOMParser().parseFromString(await (await fetch(url)).text(), 'text/html');
  const token = page.querySelector('[name=form-token]').value;
  return [url, new URLSearchParams({...fields, 'form-token': token}).toString()]; }))"""
# Send them with the session's cookie. A page of another origin sees no answer.
SENT = """Promise.allSettled(%s.map(([url, body]) => fetch(url, {
  method: 'POST', mode: '%s', credentials: 'include', body,
  headers: {'Content-Type': 'application/x-www-form-urlencoded'}}))).then(all => all.map(each => each.value?.status))"""


def outcomes(a: Provider) -> Counter[str]:
    """Return how often acts were done ("ok"), and refused for each reason, as the log has it."""
    return Counter(re.findall(r"route=console-act code=(\S+)", a.log))


@pytest.mark.sqlite_file("backups and restores are of files")
def test_each_act_is_done_once_in_a_session(mimids_federation: Any) -> None:
    federation = mimids_federation("a.example", "b.example", configs=MANUAL)
    a = federation["a.example"]
    stage(federation)
    with chromium() as page:
        page.open(a.command("console")["link"])
        assert page.evaluate("location.pathname + location.search") == "/console"
        assert "Session" in page.text()
        assert page.evaluate("document.cookie") == "", "scripts do not see the cookie"
        done, sent = [], []
        for command, fields in acts(a):
            page.open(a.operator_url + path_of(command.name))
            page.fill(**fields)
            used = {**fields, "form-token": page.evaluate(FORM_TOKEN)}
            sent.append((a.operator_url + path_of(command.name), urlencode(used)))
            assert page.click("main form button") == 200, (command.name, page.text())
            assert "Done." in page.text(), command.name
            done.append(("console", command.name))
            if (effect := EFFECTS.get(command.name)) is not None:
                effect(a, page)
        assert {name for _, name in done} == {each.name for each in COMMANDS if each.writes}
        assert page.evaluate(SENT % (json.dumps(sent), "cors")) == [403] * len(sent)
        assert outcomes(a) == {"ok": len(sent), "old-form": len(sent)}
        assert [each for each in audited(a) if each[0] == "console"] == done
        page.open(f"{a.operator_url}/console/leave")
        page.click("main form button")
        assert "Reading only" in page.text()


def devices_that_came_back_are_gone(a: Provider, page: Page) -> None:
    assert "devices removed" in page.text()
    assert a.command("device list", user="zoe")["devices"] == []


def terms_are_accepted(a: Provider, page: Page) -> None:
    (ban,) = a.command("provider show", provider="b.example")["they_ban"]
    assert ban["user_id"] == BANNED
    page.open(f"{a.operator_url}/console/providers/b.example")
    assert "their terms accepted\n1" in page.text(), page.text()


def no_welcome_waits(a: Provider, page: Page) -> None:
    assert a.read("SELECT state FROM outgoing_welcomes") == [("cancelled",)]
    assert a.command("welcome list")["welcomes"] == []


def devices_see_the_new_limit(a: Provider, page: Page) -> None:
    assert "[limits] message_bytes" in page.text()
    limits = a.add_device("yvonne").ask(lambda device: device.me())["limits"]
    assert limits["message_bytes"] == MESSAGE_BYTES


# What an act has changed, looked for at once, for the acts that other tests do not do through a running server.
EFFECTS: Mapping[str, Callable[[Provider, Page], None]] = {
    "restored": devices_that_came_back_are_gone,
    "provider accept": terms_are_accepted,
    "welcome drop": no_welcome_waits,
    "reload": devices_see_the_new_limit,
}


def test_no_act_is_done_without_session_or_from_another_origin(mimids_federation: Any) -> None:
    (a,) = mimids_federation("a.example")
    samples = [
        (a.operator_url + path_of(each.name), {name: str(value) for name, value in each.sample().items()})
        for each in COMMANDS
        if each.writes
    ]
    with chromium() as page:
        page.open(f"{a.operator_url}/console")
        filled = page.evaluate(FILLED % json.dumps(samples))
        assert page.evaluate(SENT % (json.dumps(filled), "cors")) == [403] * len(samples)
        assert outcomes(a) == {"no-session": len(samples)}
        page.open(a.command("console")["link"])
        filled = page.evaluate(FILLED % json.dumps(samples))
        assert all("form-token=&" not in f"{body}&" for _, body in filled)
        with other_origin("a page of another user of this machine") as url:
            page.open(url)
            page.evaluate(SENT % (json.dumps(filled), "no-cors"))
        assert outcomes(a) == {"no-session": len(samples), "foreign-origin": len(samples)}
    assert [command for actor, command in audited(a) if actor == "console"] == []


def test_a_browser_cannot_act_without_session_from_another_origin_or_twice(mimids_federation: Any) -> None:
    (a,) = mimids_federation("a.example")
    form = a.operator_url + path_of("user add")
    with chromium() as page:
        page.open(form)
        page.evaluate("document.querySelector('fieldset').disabled = false")
        page.fill(name="eve")
        assert page.click("main form button") == 403
        assert "There is no session" in page.text()

        link = a.command("console")["link"]
        page.open(link)
        page.open(form)
        token = page.evaluate(FORM_TOKEN)
        fields = f'<input name="name" value="eve"><input name="form-token" value="{token}">'
        foreign = f'<form method="post" action="{form}">{fields}<button>win</button></form>'
        with other_origin(foreign) as url:
            page.open(url)
            assert page.click("button") == 403
            assert "sent by another site" in page.text()
        with other_origin(f'<iframe src="{form}"></iframe>') as url:
            page.open(url)
            assert page.evaluate("document.querySelector('iframe').contentDocument") is None

        page.open(form)
        page.fill(name="zed")
        token = page.evaluate(FORM_TOKEN)
        assert page.click("main form button") == 200
        page.open(form)
        page.fill(**{"name": "eve", "form-token": token})
        assert page.click("main form button") == 403
        assert "sent already" in page.text()

        assert page.open(link) == 403
        assert "This link no longer works" in page.text()
    assert [user["user_id"] for user in a.command("user list")["users"]] == ["mimi://a.example/u/zed"]
