"""Two processes of one provider on one PostgreSQL: devices use either, and one of them is killed."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager
from pathlib import Path

import pytest
import trio

from mimids.client import Arrived, Device, open_device
from mimids.client.stream import Stream
from mimids.testing import PretendGroup, Provider, Session, content_of, open_federation
from tests.support import postgresql
from tests.support.cli_runs import run, serving
from tests.support.stage import AWAY, HUB

pytestmark = [
    AWAY,
    pytest.mark.slow,
    pytest.mark.skipif(postgresql.why_missing() is not None, reason=str(postgresql.why_missing())),
]

SENDS = 20  # by each of two devices


@contextmanager
def second_process(of: Provider) -> Iterator[str]:
    """Run `mimids serve` beside a process of a provider, on the same database; give its URL for devices."""
    text = of.config_file.read_text().replace('data_dir = "data"', 'data_dir = "second"')
    text = re.sub(r'^(public|client|operator) = "127\.0\.0\.1:\d+"', r'\1 = "127.0.0.1:0"', text, flags=re.MULTILINE)
    (of.directory / "second.toml").write_text(text)
    with serving("--config", "second.toml", cwd=of.directory) as (_, said):
        (client,) = [line.split()[1] for line in said if line.startswith("  client ")]
        yield client


async def arrived(stream: Stream) -> AsyncGenerator[bytes, None]:
    async for event in stream:
        if isinstance(event, Arrived):
            for message in event.messages:
                yield content_of(message)


def shown(provider: Provider) -> dict[str, bool]:
    """Return the processes that serve the provider, and whether each runs the jobs."""
    found = run("processes", "--json", "--config", "second.toml", cwd=provider.directory).json["processes"]
    return {each["name"]: each["runs_jobs"] for each in found}


# Longer than 40 lines: one story, in which each step needs the one before.
async def test_two_processes_serve_a_provider_and_the_end_of_one_loses_nothing(
    mimids_session: Session, tmp_path: Path
) -> None:
    configs = {str(HUB): {"store": {"url": postgresql.database_of(tmp_path / "shared")}}}
    limits = {"limits": {"device_sends_per_second": 0}}
    async with (
        open_federation(HUB, "b.example", config=limits, configs=configs, session=mimids_session) as (a, b),
        AsyncExitStack() as stack,
    ):
        url = stack.enter_context(second_process(a))
        anna = a.add_device("anna")
        at_first = await stack.enter_async_context(a.add_device("alice").client())
        at_second = await stack.enter_async_context(open_device(url, anna.token, trust=a.ca_file))
        bob = await stack.enter_async_context(b.add_device("bob").client())
        group = PretendGroup.at(HUB)
        await at_first.create_group(group.creation())

        heard = []
        for device in (at_second, bob):
            stream = await stack.enter_async_context(device.stream())
            stream.present(HUB, group.key)
            heard.append(await stack.enter_async_context(aclosing(arrived(stream))))
        with trio.fail_after(30):
            await at_first.send(HUB, group.message(b"first"))
            assert [await anext(each) for each in heard] == [b"first", b"first"]

            counters: list[int] = []

            async def send(device: Device, name: str) -> None:
                for number in range(SENDS):
                    sent = await device.send(HUB, group.message(f"{name} {number}".encode()))
                    counters.append(sent.counter)

            async with trio.open_nursery() as senders:
                senders.start_soon(send, at_first, "first")
                senders.start_soon(send, at_second, "second")
            assert sorted(counters) == list(range(1, 2 * SENDS + 1))
            said = [[await anext(each) for _ in range(2 * SENDS)] for each in heard]
            assert said[0] == said[1]

        before = shown(a)
        assert sorted(before.values()) == [False, True]
        a.kill()  # it started first, so it runs the jobs
        with trio.fail_after(30):
            await at_second.send(HUB, group.message(b"last"))
            assert [await anext(each) for each in heard] == [b"last", b"last"]
        after = shown(a)
        assert [name for name, runs_jobs in after.items() if runs_jobs] == [
            name for name, runs_jobs in before.items() if not runs_jobs
        ]
        assert sum(map(len, [a.stored(group.key)])) == 2 * SENDS + 2
