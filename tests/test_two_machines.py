"""Two machines behind a balancer: one is cut off from the database. It answers 503, and the other serves everybody.

The machines are network namespaces (`tests/support/machines.py`), and the balancer's file is that of `examples/ha/`.
Devices, machines and balancer are on one network, machines and database on another.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path

import attrs
import pytest
import trio

from mimids.client import Arrived, Backoff, Device, Problem, Unreachable, open_device
from mimids.config import Config
from mimids.testing import PretendGroup, content_of
from mimids.wire.ids import Counter
from mimids.wire.messages import SendRequest
from tests.support import machines, postgresql
from tests.support.cli_runs import ENVIRONMENT, provider, run, serving
from tests.support.machines import Machine, Switch, forward, machine, started, switch
from tests.support.stage import AWAY, eventually

EXAMPLES = Path(__file__).parent.parent / "examples" / "ha"
BALANCER, DATABASE, DEVICES = "10.0.0.10", "10.0.1.20", "10.0.0.2"
SENDERS = 4
PACE_SECONDS = 0.02
NOTICED_SECONDS = 30.0  # until a process that is cut off from the database says so (operator guide: 12 s)
BACK_SECONDS = 40.0  # until it serves again
BALANCED_SECONDS = 8.0  # until the balancer knows it too, and devices have connected again
CUT_SECONDS = 5.0  # during which all requests through the balancer must be served
SETTLE_SECONDS = 20.0

pytestmark = [
    AWAY,
    pytest.mark.slow,
    pytest.mark.skipif(machines.why_missing() is not None, reason=str(machines.why_missing())),
    pytest.mark.skipif(postgresql.why_missing() is not None, reason=str(postgresql.why_missing())),
    pytest.mark.skipif(shutil.which("haproxy") is None, reason="apt install haproxy"),
]


@attrs.frozen
class Setup:
    """Two processes of a provider on two machines, and how to reach them from here."""

    config: Config
    tokens: list[str]
    devices: Machine
    back: Switch  # the network of the database
    cables: dict[str, str]  # in it, by machine

    @property
    def home(self) -> Path:
        return self.config.tls.certificate.parent


def begin_database(at: Machine, home: Path, stack: ExitStack) -> str:
    """Start PostgreSQL on a machine; return its URL."""
    programs, user = postgresql.programs(), postgresql.server_user()
    assert programs is not None
    shutil.chown(home, user or "root")
    make = [f"{programs}/initdb", "-D", f"{home}/data", "-U", "mimids", "-A", "trust", "-E", "UTF8", "--no-locale"]
    subprocess.run(make, check=True, user=user, cwd=home, stdout=subprocess.DEVNULL)
    with (home / "data" / "pg_hba.conf").open("a") as rules:
        rules.write("host all all 10.0.1.0/24 trust\n")
    settings = postgresql.SETTINGS | {"listen_addresses": DATABASE, "unix_socket_directories": str(home)}
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    command = (f"{programs}/postgres", "-D", f"{home}/data", *options)
    stack.enter_context(started(at, *command, log=home / "log", user=user, signal="QUIT"))
    url = f"postgresql://mimids@{DATABASE}/postgres"
    for _ in range(100):
        ready = subprocess.run([*at.prefix(), programs / "pg_isready", "-q", "-d", url], check=False)
        if ready.returncode == 0:
            return url
        time.sleep(0.1)
    raise AssertionError((home / "log").read_text())


def begin_balancer(at: Machine, home: Path, stack: ExitStack) -> None:
    """Start HAProxy as the example says, but as root, so that it ends with this process."""
    text = re.sub(r"^    (user|group) haproxy\n", "", (EXAMPLES / "haproxy.cfg").read_text(), flags=re.MULTILINE)
    (home / "haproxy.cfg").write_text(text)
    stack.enter_context(started(at, "haproxy", "-db", "-f", home / "haproxy.cfg", log=home / "haproxy.log"))


def begin_process(at: Machine, number: int, home: Path, url: str, stack: ExitStack) -> None:
    """Start mimids on a machine, with the addresses of the example."""
    listen = tomllib.loads((EXAMPLES / "mimids.toml").read_text())["listen"]
    text = (home / "mimids.toml").read_text().replace('data_dir = "data"', f'data_dir = "ds{number}"')
    for name in ("public", "client"):
        address = listen[name].replace("10.0.0.11", f"10.0.0.1{number}")
        text = re.sub(rf'^{name} = "[^"]*"', f'{name} = "{address}"', text, flags=re.MULTILINE)
    directory = home / f"ds{number}-log"
    directory.mkdir()
    (home / f"ds{number}.toml").write_text(f'{text}\n[store]\nurl = "{url}"\n')
    program = (*at.prefix(), sys.executable, "-m", "mimids")
    stack.enter_context(serving("--config", str(home / f"ds{number}.toml"), cwd=directory, program=program))


@contextmanager
def set_up(directory: Path) -> Iterator[Setup]:
    """Move a provider from a file on one machine to two machines, and serve it for the block."""
    config = provider(directory)
    home = config.tls.certificate.parent
    names = [f"user{number}" for number in range(SENDERS + 1)]
    for name in names:
        run("user", "add", name, cwd=home)
    tokens = [run("device", "add", name, "phone", "--json", cwd=home).json["token"] for name in names]
    with ExitStack() as stack:
        front, back = (stack.enter_context(switch(name)) for name in ("front", "back"))
        ds1, ds2, balancer, database, devices = (
            stack.enter_context(machine(name)) for name in ("ds1", "ds2", "lb", "db", "dev")
        )
        cables = {}
        for number, each in enumerate((ds1, ds2), start=1):
            front.cable(each, f"10.0.0.1{number}")
            cables[each.name] = back.cable(each, f"10.0.1.1{number}")
        front.cable(balancer, BALANCER)
        front.cable(devices, DEVICES)
        back.cable(database, DATABASE)
        data = Path(tempfile.mkdtemp(prefix="mimids-pg-"))
        stack.callback(shutil.rmtree, data, ignore_errors=True)
        url = begin_database(database, data, stack)
        move = [*ds1.prefix(), sys.executable, "-m", "mimids", "move", "--to", url]
        subprocess.run(move, cwd=home, env=ENVIRONMENT, check=True, capture_output=True)
        for number, each in enumerate((ds1, ds2), start=1):
            begin_process(each, number, home, url, stack)
        begin_balancer(balancer, home, stack)
        yield Setup(config, tokens, devices, back, cables)


@attrs.define(eq=False)
class Load:
    """Senders that repeat each message until it is accepted, and a device that listens."""

    group: PretendGroup
    sent: dict[int, bytes] = attrs.field(factory=dict)  # by counter
    heard: list[bytes] = attrs.field(factory=list)
    refused: int = 0
    _stopping: bool = False

    async def send_on(self, device: Device, name: str) -> None:
        for number in count():
            if self._stopping:
                return
            request = self.group.message(f"{name} {number}".encode())
            while (counter := await self._send(device, request)) is None:
                self.refused += 1
                await trio.sleep(0.1)
            assert counter not in self.sent
            self.sent[counter] = content_of(request.message)
            await trio.sleep(PACE_SECONDS)

    async def _send(self, device: Device, request: SendRequest) -> Counter | None:
        """Return the counter of a message, None if it has to be sent again."""
        try:
            return (await device.send(self.group.hub, request)).counter
        except Unreachable:
            return None
        except Problem as problem:
            if problem.status != 503:
                raise
            return None

    async def listen(self, device: Device, *, task_status: trio.TaskStatus[None]) -> None:
        async with device.stream(backoff=Backoff(0.2, cap_seconds=1)) as stream:
            stream.present(self.group.hub, self.group.key, Counter(0))
            task_status.started()
            async for event in stream:
                if isinstance(event, Arrived):
                    assert (event.counter, event.skipped) == (len(self.heard), 0)
                    self.heard += [content_of(message) for message in event.messages]

    def stop(self) -> None:
        self._stopping = True

    async def is_all_heard(self) -> bool:
        return len(self.heard) >= len(self.sent)


async def status_of(device: Device) -> int:
    """Return the status of a request."""
    try:
        await device.me()
    except Problem as problem:
        return problem.status
    except Unreachable:
        return 0
    return 200


async def until_status(device: Device, status: int, seconds: float) -> None:
    """Ask until the answer has this status; until then each answer is 200, 503, or none."""
    with trio.fail_after(seconds):
        while (found := await status_of(device)) != status:
            assert found in (0, 200, 503)
            await trio.sleep(0.2)


async def cut_and_mend(found: Setup, load: Load, at_first: Device, others: Sequence[Device]) -> None:
    """Cut the first machine off from the database, and mend its cable again."""
    found.back.cut(found.cables["ds1"])
    await until_status(at_first, 503, NOTICED_SECONDS)
    await trio.sleep(BALANCED_SECONDS)
    sent, refused = len(load.sent), load.refused
    end = trio.current_time() + CUT_SECONDS
    while trio.current_time() < end:
        assert [await status_of(each) for each in (at_first, *others)] == [503, *[200] * len(others)]
        await trio.sleep(0.1)
    assert len(load.sent) > sent + CUT_SECONDS
    assert load.refused == refused
    found.back.mend(found.cables["ds1"])
    await until_status(at_first, 200, BACK_SECONDS)


async def test_a_machine_that_is_cut_off_from_the_database_answers_503_and_nothing_is_lost(tmp_path: Path) -> None:
    with set_up(tmp_path) as found:
        async with AsyncExitStack() as stack, trio.open_nursery() as forwarding:

            async def device(host: str, token: str) -> Device:
                port = await forwarding.start(partial(forward, found.devices, host, 8444))
                trust = found.home / "ca.pem"
                return await stack.enter_async_context(open_device(f"https://127.0.0.1:{port}", token, trust=trust))

            *senders, listener = [await device(BALANCER, token) for token in found.tokens]
            at_first, at_second = [await device(f"10.0.0.1{number}", found.tokens[0]) for number in (1, 2)]
            for each in (at_first, at_second, listener):
                await until_status(each, 200, BACK_SECONDS)
            load = Load(PretendGroup.at(found.config.provider))
            await listener.create_group(load.group.creation())
            async with trio.open_nursery() as listening:
                await listening.start(load.listen, listener)
                async with trio.open_nursery() as sending:
                    for number, each in enumerate(senders):
                        sending.start_soon(load.send_on, each, f"sender {number}")
                    await trio.sleep(1)
                    await cut_and_mend(found, load, at_first, [at_second, listener])
                    load.stop()
                await eventually(load.is_all_heard, SETTLE_SECONDS)
                listening.cancel_scope.cancel()
            assert sorted(load.sent) == list(range(len(load.sent)))  # no gap, and no message has two counters
            stored = [content_of(each) async for each in at_first.receive_all(load.group.hub, load.group.key)]
            assert stored == load.heard == [load.sent[counter] for counter in sorted(load.sent)]
            print(f"{len(load.sent)} messages, {load.refused} repeated")
            forwarding.cancel_scope.cancel()
