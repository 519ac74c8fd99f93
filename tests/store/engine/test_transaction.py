from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from mimids.errors import MimiError, NotFound
from mimids.store.engine.sqlite import open_store, read_here
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx, refusable
from tests.support.notes import insert_note, note, texts

WRITES = 100


async def refuse(store: Store, work: Callable[[Tx], int | MimiError]) -> None:
    with pytest.raises(NotFound):
        await store.write_or_refuse(work)


async def runs_beside(path: Path, work: Callable[[Tx], int | MimiError]) -> Counter[str]:
    """Write WRITES notes in one batch with a work that refuses; return how often each of all these works ran."""
    runs: Counter[str] = Counter()

    def counted(name: str, work: Callable[[Tx], int | MimiError]) -> Callable[[Tx], int | MimiError]:
        def run(tx: Tx) -> int | MimiError:
            runs[name] += 1
            return work(tx)

        return run

    async with open_store(path) as store, trio.open_nursery() as jobs:
        async with trio.open_nursery() as writes:
            for number in range(WRITES):
                writes.start_soon(store.write_or_refuse, counted(str(number), note(str(number))))
            await trio.testing.wait_all_tasks_blocked()  # so that the work that refuses is the last of the batch
            writes.start_soon(refuse, store, counted("refusing", work))
            await trio.testing.wait_all_tasks_blocked()
            jobs.start_soon(store.run)
        jobs.cancel_scope.cancel()
    assert store.statistics().commits == 1
    with read_here(path) as tx:
        assert sorted(texts(tx)) == sorted(str(number) for number in range(WRITES))
    return runs


def raise_refusal(tx: Tx) -> int:
    insert_note("undone", tx)
    raise NotFound()


@pytest.mark.parametrize(
    ("work", "times"),
    [(lambda _tx: NotFound(), 1), (refusable(raise_refusal), 1), (raise_refusal, 2)],
    ids=["returned", "refusable", "raised"],
)
async def test_only_a_refusal_that_is_raised_makes_the_works_beside_it_run_again(
    path: Path, work: Callable[[Tx], int | MimiError], times: int
) -> None:
    assert set((await runs_beside(path, work)).values()) == {times}


async def test_a_refusable_work_that_does_not_refuse_is_kept(store: Store) -> None:
    assert await store.write_or_refuse(refusable(note("kept"))) == 1
    assert await store.read(texts) == ["kept"]


async def test_a_savepoint_undoes_only_its_own_block(store: Store) -> None:
    def work(tx: Tx) -> None:
        insert_note("before", tx)
        with suppress(LookupError), tx.savepoint():
            insert_note("inside", tx)
            raise LookupError
        with tx.savepoint():
            insert_note("after", tx)

    await store.write(work)
    assert await store.read(texts) == ["before", "after"]


async def test_what_waits_for_the_commit_is_called_once_and_only_for_what_was_committed(store: Store) -> None:
    called: list[str] = []

    def work(tx: Tx) -> None:
        insert_note("kept", tx)
        tx.after_commit(lambda: called.append("kept"))
        with suppress(LookupError), tx.savepoint():
            tx.after_commit(lambda: called.append("undone"))
            raise LookupError
        assert called == []

    def failing(tx: Tx) -> None:
        tx.after_commit(lambda: called.append("failed"))
        raise LookupError

    async def fail() -> None:
        with pytest.raises(LookupError):
            await store.write(failing)

    async with trio.open_nursery() as writes:  # one batch, which runs again for the work that raises
        writes.start_soon(store.write, work)
        writes.start_soon(fail)
    assert called == ["kept"]
