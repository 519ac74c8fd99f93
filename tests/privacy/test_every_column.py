"""After `mimids forget`, no column names the user or a device of the user: every column is filled, then looked at."""

from __future__ import annotations

import json
from pathlib import Path

from docs.generate.privacy import columns
from mimids.store.engine.transaction import Tx
from mimids.testing.clock import MovableClock
from tests.support.federation import federated
from tests.support.mls_makers import NOW
from tests.support.provider import Assembled
from tests.support.stored import sweep
from tests.support.traces import Person, Town, operate, settle, traces

NAMING = ("device", "user_id", "owner", "accused", "sender", "issuer", "reporter_device")
DIGESTS = {"removals.device_digest"}  # written by the removal itself
# What others say of the user stays, and `forget` says that it does.
STAYS = {
    "accepted_restrictions.user_id",
    "accepted_terms.accepted",
    "accepted_terms.offered",
    "bans.user_id",
    "mutes.user_id",
    "reports.accused",
}
ALSO = {"rate_buckets.key", "push_subscriptions.endpoint", "accepted_terms.accepted", "accepted_terms.offered"}


def fill(tx: Tx, who: Person) -> None:
    """Add rows that name the person to the tables that the person's own requests leave empty."""
    device, user = who.device.row, who.device.user_id
    hub, partition = tx.one("SELECT hub, id FROM partitions ORDER BY id") or (0, 0)
    welcome = (tx.one("SELECT id FROM welcomes ORDER BY id") or (0,))[0]
    terms = json.dumps({"bans": [user.decode()]})
    endpoint = f"https://push.example/{who.device.name}"
    for table, values in (
        ("push_subscriptions", (device, endpoint, bytes(65), bytes(16), 1, 1, 0)),
        ("early_positions", (None, device, hub, b"key of %s" % user)),
        ("connected_devices", (device, "process")),
        ("requested_partitions", (None, hub, bytes(32), bytes(48), bytes(64), device, 0)),
        ("restored_readers", (partition, device)),
        ("accepted_restrictions", (hub, user, None)),
        ("accepted_terms", (hub, 1, terms, 0, 1, terms, 0, 1)),
        ("bans", (None, user, None, "", 0, None)),
        ("mutes", (None, user, b"", "", 0, None)),
    ):
        tx.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", values)  # noqa: S608  # names above
    tx.execute(
        "INSERT INTO outgoing_welcomes (welcome, partition, provider, refs, state, created_at, sender)"
        " VALUES (?, ?, ?, x'00', 'held', 0, ?)",
        (welcome, partition, hub, device),
    )
    tx.execute(
        "INSERT INTO reports (digest, reporter_device, hub, accused, kind, note, evidence, received_at)"
        " VALUES (?, ?, 'a.example', ?, '', '', x'', ?)",
        (who.device.user_id[:32].ljust(32, b"."), device, user.decode(), NOW * 1000),
    )


async def full(a: Assembled, b: Assembled, clock: MovableClock) -> Town:
    town = await settle(a, b, clock)
    await b.services.store.write(lambda tx: fill(tx, town.gone))
    return town


def naming_columns() -> set[str]:
    """Return the columns that name a user or a device, by their names."""
    named = {f"{table}.{name}" for table, name in columns() if any(word in name for word in NAMING)}
    return (named - DIGESTS) | ALSO


async def test_no_column_that_can_name_a_user_or_device_does_after_the_user_is_forgotten(tmp_path: Path) -> None:
    clock = MovableClock(stopped_at=NOW * 1000)
    async with federated(tmp_path, "a.example", "b.example", clock=clock) as (a, b):
        town = await full(a, b, clock)
        gone = town.gone
        (user,) = await b.services.store.read(
            lambda tx: tx.one("SELECT id FROM users WHERE user_id = ?", (gone.device.user_id,)) or (0,)
        )
        before = traces(b, gone, gone.device.row, user)
        assert naming_columns() - before == set(), "every such column has to be filled"
        answer = await operate(b, "forget", user=gone.name)
        await b.services.rates.save()
        await sweep(b)
        assert traces(b, gone, gone.device.row, user) == STAYS
        assert (answer["reports"], answer["bans"], answer["terms_of"]) == (1, 2, ["b.example"])
