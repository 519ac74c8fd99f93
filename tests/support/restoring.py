"""Providers that are restored from a backup, in one process."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from mimids.config import Config
from mimids.store import backup, recoveries, restored_positions
from mimids.store.engine.sqlite import write_here
from mimids.store.engine.transaction import Tx
from mimids.values import Follower, Milliseconds
from mimids.wire.ids import Counter, ProviderId
from mimids.wire.messages import ReceiveRequest
from tests.support.cli_runs import invoke
from tests.support.doubles import Peer
from tests.support.federation import Room, device, federated, in_memory_peer
from tests.support.provider import Assembled, assembled
from tests.support.stored import rows, until

MALLORY = ProviderId("m.example")  # what `recovering` asks


def make_backup(running: Assembled, to: Path) -> None:
    backup.copy(running.config.database, to, Milliseconds(0))


def use_backup(copy: Path, config: Config) -> None:
    """Prepare a backup as `mimids restore` does, as far as groups are concerned."""
    config.data_dir.mkdir()
    shutil.copy(copy, config.database)

    def prepare(tx: Tx) -> None:
        recoveries.begin(tx, config.provider, config.federation.allow)
        restored_positions.mark_free_groups(tx, config.provider)
        backup.unmark(tx)

    write_here(config.database, prepare)


def restore(config: Config, copy: Path) -> tuple[Path, Path]:
    """Run `mimids restore --replace` for a provider that is not running; return the file put aside, and the new one."""
    lines = (
        f'provider = "{config.provider}"',
        f'data_dir = "{config.data_dir}"',
        "[tls]",
        f'certificate = "{config.tls.certificate}"',
        f'private_key = "{config.tls.private_key}"',
    )
    (config.tls.certificate.parent / "mimids.toml").write_text("\n".join(lines))
    ran = invoke(config, "restore", "--replace", "--json", copy)
    assert ran.exit_code == 0, (ran.stderr, ran.exception)
    answer = json.loads(ran.stdout)
    return Path(answer["put_aside"]), Path(answer["database"])


@asynccontextmanager
async def restored(
    running: Assembled, copy: Path, directory: Path, *others: Assembled, jobs: bool = True
) -> AsyncIterator[Assembled]:
    """Run a provider on a backup of it, in place of the one that is running."""
    config = attrs.evolve(running.config, data_dir=directory)
    await trio.to_thread.run_sync(use_backup, copy, config)
    async with AsyncExitStack() as stack:
        again = await stack.enter_async_context(assembled(config))
        for other in others:
            other.peers.add(config.provider, in_memory_peer(again, other.config.provider))
            again.peers.add(other.config.provider, in_memory_peer(other, config.provider))
        tasks = await stack.enter_async_context(trio.open_nursery())
        if jobs:
            await tasks.start(again.services.delivery.run)
            await tasks.start(again.services.recovery_as_hub.run)
            tasks.start_soon(again.services.recovery_as_follower.run)
        yield again
        tasks.cancel_scope.cancel()


async def all_groups_free(running: Assembled) -> None:
    await until(lambda: _is_free(running))


async def _is_free(running: Assembled) -> bool:
    return await rows(running, "SELECT count(*) FROM recoveries WHERE answered = 0") == [(0,)]


@asynccontextmanager
async def recovering(
    directory: Path, room: Room, peer: Peer, *, follows: bool = False, **sections: Any
) -> AsyncIterator[Assembled]:
    """Run a hub with one group and one message as after a restore; `peer` is m.example, the only provider it knows."""
    async with federated(directory, "a.example", jobs_of=(), **sections) as (a,):
        await a.services.hub.create_group(room.creation(), device(a))
        await a.services.hub.send(room.send("0"), device(a))
        if follows:
            await a.services.hub.receive(ReceiveRequest(room.key, Counter(0)), Follower(MALLORY))
        await a.services.store.write(lambda tx: recoveries.begin(tx, a.config.provider, [MALLORY]))
        a.peers.add(MALLORY, peer)
        async with trio.open_nursery() as jobs:
            await jobs.start(a.services.recovery_as_hub.run)
            yield a
            jobs.cancel_scope.cancel()
