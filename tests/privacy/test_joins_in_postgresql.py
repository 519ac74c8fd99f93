"""An administrator of PostgreSQL, who also sees its hidden columns, does not join tokens with what was claimed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from mimids.store.engine.postgresql import rewriting
from mimids.testing.clock import MovableClock
from tests.support import postgresql
from tests.support.claims import claimed
from tests.support.curious import Table, hidden_columns_of, joined, ranked
from tests.support.federation import federated
from tests.support.mls_makers import NOW
from tests.support.stored import sweep

pytestmark = pytest.mark.skipif(postgresql.why_missing() is not None, reason=str(postgresql.why_missing()))

AT_MOST = 6  # right guesses; one is right by chance


def guesses(one: Table, other: Table) -> Iterator[tuple[str, set[tuple[object, object]]]]:
    """Yield for each way to join two tables by hidden columns the pairs of values that belong together by it."""
    for column in ("transaction", "place"):
        for join in (joined, ranked):
            places = join(one.column(column), other.column(column))
            pairs = {(value, match) for at, to in places for value in one.rows[at] for match in other.rows[to]}
            yield f"{join.__name__} by {column}", pairs


def right_guesses(found: dict[str, Table], truth: set[tuple[object, object]]) -> dict[tuple[str, str], int]:
    return {
        (other.name, way): len(truth & pairs)
        for other in found.values()
        if other.name != "tokens"
        for way, pairs in guesses(found["tokens"], other)
        if len(truth & pairs) > AT_MOST
    }


@pytest.mark.parametrize("at_once", [256, 7])  # tokens that are rewritten in one transaction
async def test_a_token_does_not_show_with_which_key_package_it_was_written(
    at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewriting, "BLOCK_ROWS", at_once)
    chance, clock = random.Random(15), MovableClock(stopped_at=NOW * 1000)
    url = postgresql.database_of(tmp_path / "b")
    async with federated(tmp_path, "b.example", jobs_of=(), clock=clock, store={"url": url}) as (b,):
        truth: set[tuple[object, object]] = {*await claimed(b, chance)}
        assert right_guesses(hidden_columns_of(url), truth), "before the sweep, a join finds them"
        await sweep(b)
        assert right_guesses(hidden_columns_of(url), truth) == {}


async def test_tokens_do_not_show_in_which_sweep_they_were_written(tmp_path: Path) -> None:
    clock = MovableClock(stopped_at=NOW * 1000)
    url = postgresql.database_of(tmp_path / "b")
    async with federated(tmp_path, "b.example", jobs_of=(), clock=clock, store={"url": url}) as (b,):
        order = [token for token, _ in await claimed(b, random.Random(15), after_each=b.services.store.separate_rows)]
        await sweep(b)
        tokens = hidden_columns_of(url)["tokens"]
        for hidden in ("transaction", "place"):
            ids = [each for _, each in sorted(zip(tokens.column(hidden), tokens.column("id"), strict=True))]
            used = [order.index(each) for each in ids]
            assert sum(abs(first - second) == 1 for first, second in pairwise(used)) <= AT_MOST, hidden


async def test_a_sweep_rewrites_only_tokens_near_those_that_were_written_since_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewriting, "BLOCK_ROWS", 8)
    clock = MovableClock(stopped_at=NOW * 1000)
    url = postgresql.database_of(tmp_path / "b")
    async with federated(tmp_path, "b.example", jobs_of=(), clock=clock, store={"url": url}) as (b,):
        await claimed(b, random.Random(15))
        await sweep(b)
        before = hidden_columns_of(url)["tokens"]
        await b.services.store.write(lambda tx: tx.execute("UPDATE tokens SET uses_left = 5 WHERE id = 3"))
        for _ in range(2):
            await sweep(b)
        after = hidden_columns_of(url)["tokens"]
        ids = before.column("id")
        assert ids == after.column("id") or sorted(ids) == sorted(after.column("id"))
        written = dict(zip(after.column("id"), after.column("transaction"), strict=True))
        changed = {each for each, at in zip(ids, before.column("transaction"), strict=True) if written[each] != at}
        assert changed == {1, 2, 3, 4, 5, 6, 7}
