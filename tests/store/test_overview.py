"""What the operator sees of a group, read from the store."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from mimids.store import groups, overview, partitions, providers, retention, terminations
from mimids.store.engine.migrate import shipped
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.values import Milliseconds
from mimids.wire.ids import MLS10, CipherSuite, Counter, GroupId, MaskedPartitionKey, ProviderId

HUB, GROUP, NOW = ProviderId("a.example"), GroupId(b"g"), Milliseconds(1)


@pytest.fixture
def tx() -> Iterator[Tx]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for migration in shipped():
        connection.executescript(migration.sql)
    connection.execute("PRAGMA foreign_keys=OFF")
    yield Tx(connection)
    connection.close()


def a_group(tx: Tx, hub: int) -> Group:
    return groups.add_group(
        tx,
        hub=hub,
        group_id=GROUP,
        version=MLS10,
        cipher_suite=CipherSuite(1),
        creation_digest=None,
        creator=None,
        now=NOW,
    )


def test_a_branch_of_which_expiry_forgot_the_opener_is_nobodys(tx: Tx) -> None:
    hub, other = (providers.ensure_provider(tx, name) for name in (HUB, ProviderId("b.example")))
    group = a_group(tx, hub)
    *_, last = (
        partitions.add_partition(
            tx,
            group=group.id,
            hub=hub,
            masked_key=MaskedPartitionKey(number.to_bytes(32, "big")),
            epoch=1,
            now=NOW,
            opener_provider=opener,
        )
        for number, opener in enumerate((None, hub, other, other))
    )
    assert overview.commits_of_others(tx, HUB) == (2, 0)
    assert retention.expire_partition(tx, partition=last, now=NOW)
    assert overview.commits_of_others(tx, HUB) == (1, 0)


@pytest.mark.parametrize(
    ("messages", "terminated", "live"),
    [((1, 1), (), True), ((1, 0), (), False), ((1, 1), (2,), False), ((1, 1, 1), (2,), True), ((1,), (), False)],
)
def test_a_fork_is_live_while_two_open_branches_carry_messages(
    messages: tuple[int, ...], terminated: tuple[int, ...], live: bool, tx: Tx
) -> None:
    hub = providers.ensure_provider(tx, HUB)
    group = a_group(tx, hub)

    def add(parent: int | None, count: int) -> int:
        key = MaskedPartitionKey(len(partitions.partitions_of_group(tx, group.id)).to_bytes(32, "big"))
        row = partitions.add_partition(
            tx, group=group.id, hub=hub, masked_key=key, epoch=1, now=NOW, parent=parent, opened_by=parent
        )
        partitions.advance(tx, row, next_counter=Counter(count), last_seq=count)
        return row

    root = add(None, 1)
    branches = [add(root, count) for count in messages]
    for number in terminated:
        terminations.terminate(tx, branches[number - 1], "", NOW)
    summary = overview.group_summary(tx, HUB, GROUP)
    assert summary is not None
    assert summary.live_forks == int(live)
    assert [each.row for each in overview.partition_summaries(tx, group.id) if each.live_fork] == [root] * live
