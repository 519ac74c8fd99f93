"""The console of a provider in use, in a browser: three groups, one with a fork, and another provider that is down.

`make screenshots` keeps the pictures, as docs/console/ has them; look at them whenever this changes.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from mimids.client import Problem
from mimids.testing import PretendGroup, Provider, Session
from mimids.wire.ids import GroupId
from tests.support.stage import HUB, NAMES, Stage, eventually, staged

pytestmark = pytest.mark.slow

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
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


def browse(url: str, *options: str) -> str:
    """Load a page in the browser; return the result."""
    assert BROWSER is not None
    with tempfile.TemporaryDirectory() as profile:
        command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                   f"--user-data-dir={profile}", "--force-device-scale-factor=1", *options, url]  # fmt: skip
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return ran.stdout


def picture(url: str, path: Path, *, dark: bool, height: int) -> None:
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    browse(url, scheme, f"--window-size=1120,{height}", f"--screenshot={path}")


def octets_of(png: Path) -> bytes:
    """Return the octets of the rows of a PNG, with their filter."""
    data, at, compressed = png.read_bytes(), 8, b""
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if data[at + 4 : at + 8] == b"IDAT":
            compressed += data[at + 8 : at + 8 + length]
        at += length + 12
    return zlib.decompress(compressed)


@pytest.mark.skipif(BROWSER is None, reason="wants Chromium")
async def test_a_browser_shows_groups_forks_and_providers_in_dark_and_light(
    mimids_session: Session, tmp_path: Path
) -> None:
    kept = Path(os.environ.get("MIMIDS_SCREENSHOTS", tmp_path))
    async with scene(mimids_session) as a:
        overview = f"{a.operator_url}/console"
        shown = await trio.to_thread.run_sync(browse, overview, "--dump-dom")
        links = {name: path for path, name in re.findall(r'href="(/console/groups/[^"]+)">([^<]+)</a>', shown)}
        assert {FORKED, LONG, SMALL} <= links.keys()
        assert "&lt;b&gt;pills" in shown
        assert "c.example does not answer" in shown
        assert "45 epochs" in await trio.to_thread.run_sync(browse, a.operator_url + links[LONG], "--dump-dom")
        forked = await trio.to_thread.run_sync(browse, a.operator_url + links[FORKED], "--dump-dom")
        assert "live fork" in forked
        assert "stale fork, both sides asked" in forked
        assert (
            len(re.findall("<tr>", forked)) - 1
            == a.read(
                "SELECT count(*) FROM partitions p JOIN groups g ON g.id = p.group_ref WHERE g.group_id = ?",
                (FORKED.encode(),),
            )[0][0]
        )
        for name, url, height in (
            ("overview", overview, 1300),
            ("fork", a.operator_url + links[FORKED], 1170),
        ):
            for scheme in ("light", "dark"):
                path = kept / f"{name}-{scheme}.png"
                take = partial(picture, url, path, dark=scheme == "dark", height=height)
                await trio.to_thread.run_sync(take)
            light, dark = (octets_of(kept / f"{name}-{scheme}.png") for scheme in ("light", "dark"))
            assert light != dark
            assert len(set(light)) > 50 < len(set(dark)), "nothing but paper"
