"""How long sends wait while other work goes on: `python -m bench.growth.stalls DIRECTORY MESSAGES` prints JSON.

Twenty sends a second go to groups in use. Backup and check run as processes of their own, as an operator runs them. Two
figures of each work are printed, in milliseconds: the 99th percentile of sends, and the CPU time of the longest
transaction. The second one does not depend on what else the machine does.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from mimids.ds.upkeep.pacing import Pacing
from mimids.ds.upkeep.tree_sweep import sweep_trees
from mimids.store import backup, recoveries, retention
from mimids.store.engine.sqlite import connect_to_read
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds
from tests.support import big_database
from tests.support.big_hub import BigHub, running

SENDS_A_SECOND: Final = 20
SECONDS: Final = 6  # of each work, at least; short work is repeated
LONGEST_SECONDS: Final = 60  # then it is stopped
HELD_GROUPS: Final = 1000
Work = Callable[[], Awaitable[object]]


@attrs.define
class Longest:
    """The CPU milliseconds of the longest transaction of a store, since they were set to 0."""

    milliseconds: float = 0.0

    def watch(self, store: Store) -> None:
        store.write = self._timed(store.write)  # type: ignore[method-assign,assignment]
        store.write_shielded = self._timed(store.write_shielded)  # type: ignore[method-assign,assignment]

    def _timed(self, write: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        def timed(work: Callable[[Tx], Any], tx: Tx) -> Any:
            began = time.thread_time()
            try:
                return work(tx)
            finally:
                self.milliseconds = max(self.milliseconds, (time.thread_time() - began) * 1000)

        return lambda work: write(partial(timed, work))


async def percentile(hub: BigHub, work: Work) -> float:
    """Return the 99th percentile of sends while `work` is done again and again."""
    waits: list[float] = []
    began = trio.current_time()

    async def send() -> None:
        sent = trio.current_time()
        await hub.services.hub.send(hub.message(), hub.device())
        waits.append((trio.current_time() - sent) * 1000)

    async with trio.open_nursery() as tasks:

        async def send_on() -> None:
            for n in range(SENDS_A_SECOND * LONGEST_SECONDS):
                await trio.sleep_until(began + n / SENDS_A_SECOND)
                tasks.start_soon(send)

        tasks.start_soon(send_on)
        with trio.move_on_after(LONGEST_SECONDS):
            while trio.current_time() < began + SECONDS:
                await work()
        tasks.cancel_scope.cancel()
    return sorted(waits)[len(waits) * 99 // 100]


async def _process(*arguments: str) -> None:
    await trio.run_process([sys.executable, "-m", "bench.growth.stalls", *arguments])


# Longer than 40 lines: one entry for each kind of work.
def works(hub: BigHub) -> dict[str, Work]:
    """Return what a server, or its operator, does beside sends."""
    services, database = hub.services, hub.services.config.database
    beside = hub.beside()

    async def retain() -> None:
        """Plan a hundred groups, and empty what is old in them."""
        first = hub.chance.randrange(hub.sizes.groups - 100)
        due = [(services.clock.now(), False, 1 + first + n) for n in range(100)]
        await services.store.write(partial(retention.set_due, due=due))
        await services.sweeper.sweep()

    async def trees() -> None:
        await sweep_trees(services.store, services.clock.now(), Pacing(services.store).pause)

    async def recover() -> None:
        """Hold groups until the job has asked a provider about each."""

        def hold(tx: Tx) -> None:
            for group in range(min(HELD_GROUPS, hub.sizes.groups // 10)):
                if group % (hub.sizes.groups // 100):  # not those that are sent to
                    recoveries.ask(tx, 1 + group, 2 + big_database.DOWN + group % 3)

        await services.store.write(hold)
        with trio.move_on_after(SECONDS):
            await services.recovery_as_hub.run()
        await services.store.write(lambda tx: tx.execute("DELETE FROM recoveries"))

    async def nothing() -> None:
        await trio.sleep(1)

    return {
        "usual": nothing,
        "retention of 100 groups": retain,
        "tree sweep": trees,
        "recovery": recover,
        "group release": beside["group release"],
        "/metrics": beside["/metrics"],
        "/console": beside["/console"],
        "delivery": partial(_deliver, hub),
        "backup": partial(_process, "backup", str(database)),
        "check": partial(_process, "check", str(database)),
    }


async def _deliver(hub: BigHub) -> None:
    with trio.move_on_after(SECONDS):
        await hub.services.delivery.run()


async def measure(directory: Path, messages: int) -> dict[str, tuple[float, float]]:
    """Return for each work the 99th percentile of sends, and the longest transaction."""
    async with running(directory, messages) as hub:
        longest, found = Longest(), {}
        longest.watch(hub.services.store)
        for name, work in works(hub).items():
            longest.milliseconds = 0.0
            found[name] = await percentile(hub, work), longest.milliseconds
            print(f"{messages:,}: {name}: {found[name]}", file=sys.stderr)
        return found


def main(arguments: list[str]) -> None:
    if arguments[0] == "backup":
        target = Path(arguments[1]).with_name("stalls-backup.sqlite3")
        backup.copy(Path(arguments[1]), target, Milliseconds(time.time_ns() // 1_000_000))
        target.unlink()
    elif arguments[0] == "check":
        assert connect_to_read(Path(arguments[1])).execute("PRAGMA integrity_check(3)").fetchall() == [("ok",)]
    else:
        print(json.dumps(trio.run(measure, Path(arguments[0]), int(arguments[1]))))


if __name__ == "__main__":
    main(sys.argv[1:])
