"""mimids.testing in other programs: its import has no effects; it works under trio, asyncio, threads and pytest."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import trio

import mimids.testing
from mimids.testing import Federation, Link, PretendGroup, Provider, Session, content_of, federation, open_federation

ROOT = Path(__file__).parents[2]
PLUGIN = "mimids.testing.pytest_plugin"

UNCHANGED = """
import asyncio, atexit, gc, logging, os, signal, sys, threading, warnings

def state():
    return {
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "wakeup": signal.set_wakeup_fd(-1),
        "loggers": sorted(name for name, it in logging.Logger.manager.loggerDict.items() if getattr(it, "handlers", 0)),
        "root": (logging.root.level, list(logging.root.handlers)),
        "threads": threading.active_count(),
        "descriptors": sorted(os.listdir("/proc/self/fd")),
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.displayhook),
        "asyncio": type(asyncio.get_event_loop_policy()).__name__,
        "warnings": list(warnings.filters),
        "gc": (gc.isenabled(), gc.get_threshold()),
        "exit": atexit._ncallbacks(),
        "recursion": sys.getrecursionlimit(),
    }

import cryptography.hazmat.bindings._rust, httpx, prometheus_client  # what others do is not ours
before = state()
import mimids.testing
if sys.argv[1] == "names":
    for name in mimids.testing.__all__:
        getattr(mimids.testing, name)
after = state()
assert before == after, {name: (before[name], after[name]) for name in before if before[name] != after[name]}
print(sorted({"quart", "quart_trio", "trio_asyncio", "hypercorn", "mimids.app", "mimids.client"} & set(sys.modules)))
"""


@pytest.mark.parametrize(("used", "loaded"), [("nothing", "[]"), ("names", "['mimids.client']")])
def test_importing_changes_nothing_and_loads_no_server(used: str, loaded: str) -> None:
    command = [sys.executable, "-c", UNCHANGED, used]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, loaded), done.stderr


def test_the_public_names_are_those_of_all() -> None:
    for name in mimids.testing.__all__:
        assert getattr(mimids.testing, name).__name__ == name
    with pytest.raises(AttributeError, match="nonsense"):
        mimids.testing.nonsense  # noqa: B018


async def exchange(made: Federation) -> bytes:
    """Send a message from one provider to the other, under trio or asyncio."""
    a, b = made
    group = PretendGroup.at(a.name)
    async with a.add_device("alice").client() as alice, b.add_device("bob").client() as bob:
        await alice.create_group(group.creation())
        await bob.send(group.hub, group.message(b"hello"))
        (message,) = await alice.receive(group.hub, group.key)
        return content_of(message)


async def test_it_works_under_trio(mimids_session: Session) -> None:
    async with open_federation("a.example", "b.example", session=mimids_session) as made:
        assert await exchange(made) == b"hello"
    assert not made.directory.exists()


def test_it_works_under_asyncio(mimids_session: Session) -> None:
    async def main() -> None:
        async with open_federation("a.example", "b.example", session=mimids_session) as made:
            assert await exchange(made) == b"hello"
        assert not made.directory.exists()

    asyncio.run(main())


async def test_the_event_loop_keeps_running_while_providers_start(mimids_session: Session) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await trio.sleep(0.01)
            ticks += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        async with open_federation("a.example", session=mimids_session):
            assert ticks > 3
        nursery.cancel_scope.cancel()


async def test_a_start_that_is_cancelled_leaves_nothing_behind(mimids_session: Session) -> None:
    made: list[Federation] = []
    with trio.move_on_after(0.5):
        async with open_federation("a.example", session=mimids_session) as found:
            made.append(found)
            await trio.sleep_forever()
    assert not made or not made[0].directory.exists()


def test_threads_share_a_session_and_a_federation(mimids_session: Session) -> None:
    got: list[bytes] = []

    def work(number: int) -> None:
        with federation("a.example", session=mimids_session) as (a,):
            alice, group = a.add_device("alice"), PretendGroup.at(a.name)
            alice.ask(lambda device: device.create_group(group.creation()))
            alice.ask(lambda device: device.send(group.hub, group.message(b"%d" % number)))
            got.extend(map(content_of, alice.ask(lambda device: device.receive(group.hub, group.key))))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [b"0", b"1", b"2", b"3"]


TESTS = """
import pytest

def test_one(mimids_provider):
    assert mimids_provider.add_user("alice") == "mimi://a.example/u/alice"

def test_two_federations(mimids_federation):
    a, b = mimids_federation("a.example", "b.example")
    (c,) = mimids_federation("c.example", config={"limits": {"device_groups": 7}})
    assert c.config.limits.device_groups == 7

def test_that_fails(mimids_federation):
    a, b = mimids_federation("a.example", "b.example")
    b.crash("sweeper")
    b.wait_ended()
    assert False
"""


def test_fixtures_of_pytest_report_the_logs_of_failed_tests(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    by_name = [] if entry_points(group="pytest11", name="mimids") else ["-p", PLUGIN]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly", *by_name, str(tmp_path)]
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path), "-c", "/dev/null"],
        capture_output=True, text=True, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert "1 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    assert "log of b.example" in done.stdout
    assert "sweeper was told to crash" in done.stdout


def test_the_document_names_all_methods() -> None:
    document = (ROOT / "docs/testing.md").read_text()
    for kind in (Provider, Link):
        (table,) = re.findall(
            rf"^\| member of a .*{kind.__name__.lower()}.*\|\n\| --- \| --- \|\n((?:\|.*\n)+)", document, re.I | re.M
        )
        names = {name for row in table.splitlines() for name in re.findall(r"`(\w+)", row.split("|")[1])}
        known = {*dir(kind), *getattr(kind, "__annotations__", {})}
        assert len(names) > 4
        assert names - known == set()
    assert set(re.findall(r"`(mimids_\w+)`", document)) == {"mimids_provider", "mimids_federation", "mimids_session"}


def test_loading_the_plugin_imports_little() -> None:
    """Pytest loads the plugin in every run where mimids is installed."""
    script = f"import sys, pytest; before = set(sys.modules); import {PLUGIN}; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert set(done.stdout.split()) == {"mimids", "mimids.testing", PLUGIN}
