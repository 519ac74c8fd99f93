"""An administrator who looks where SQLite's file has each row does not learn in which order tokens were used.

KeyPackages are numbered by their claims. So the order of the tokens would tell which token claimed which KeyPackage.
"""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest

from mimids.store import backup
from mimids.store.engine.sqlite import SqliteWriter
from mimids.testing.clock import MovableClock
from mimids.values import Milliseconds
from tests.support.claims import CLAIMS, claimed
from tests.support.federation import federated
from tests.support.file_layout import with_places
from tests.support.mls_makers import NOW
from tests.support.restoring import restore
from tests.support.stored import sweep

pytestmark = pytest.mark.sqlite_file("it reads the pages of a file")

AT_MOST = 8  # neighbours that were used one after the other; two of 60 are by chance


def neighbours(file: Path, order: list[int]) -> int:
    """Count tokens that are neighbours in the file and were used one after the other."""
    tokens = with_places(file)["tokens"]
    at = tokens.columns.index("id")
    placed = [order.index(row[at]) for row in sorted(tokens.rows, key=lambda row: row[:2])]
    assert len(placed) == CLAIMS
    return sum(abs(first - second) == 1 for first, second in pairwise(placed))


@pytest.mark.parametrize("each_is_swept", [False, True], ids=["one sweep", "a sweep after each claim"])
async def test_neither_the_database_nor_a_backup_shows_the_order_of_tokens(each_is_swept: bool, tmp_path: Path) -> None:
    async with federated(tmp_path, "b.example", jobs_of=(), clock=MovableClock(stopped_at=NOW * 1000)) as (b,):

        async def pause() -> None:
            if each_is_swept:
                await sweep(b)

        order = [token for token, _ in await claimed(b, random.Random(15), after_each=pause)]
        if not each_is_swept:
            await b.services.store.truncate_log()
            assert neighbours(b.config.database, order) > AT_MOST, "the file would show it"
        backup.copy(b.config.database, tmp_path / "copy", Milliseconds(1))
        assert neighbours(tmp_path / "copy", order) <= AT_MOST
        await sweep(b)
        assert neighbours(b.config.database, order) <= AT_MOST


async def test_a_database_that_restore_puts_aside_does_not_show_the_order_of_tokens(tmp_path: Path) -> None:
    async with federated(tmp_path, "b.example", jobs_of=(), clock=MovableClock(stopped_at=NOW * 1000)) as (b,):
        backup.copy(b.config.database, tmp_path / "copy", Milliseconds(1))
        order = [token for token, _ in await claimed(b, random.Random(15))]
    aside, _ = restore(b.config, tmp_path / "copy")
    assert neighbours(aside, order) <= AT_MOST


async def test_a_sweep_rewrites_only_tokens_near_those_that_were_used(tmp_path: Path) -> None:
    async with federated(tmp_path, "b.example", jobs_of=(), clock=MovableClock(stopped_at=NOW * 1000)) as (b,):
        await claimed(b, random.Random(15))
        await sweep(b)
        writer = b.services.store._writer
        assert isinstance(writer, SqliteWriter)
        assert await writer.separate_rows() == 0
        await b.services.store.write(lambda tx: tx.execute("UPDATE tokens SET uses_left = 5 WHERE id = 3"))
        assert await writer.separate_rows() == 1
        await b.services.store.truncate_log()
        tokens = with_places(b.config.database)["tokens"]
        assert sorted(tokens.column("id")) == [*range(1, CLAIMS + 1)]
