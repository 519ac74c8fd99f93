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
    (other,) = tx.one("SELECT id FROM providers WHERE id <> ? ORDER BY id", (hub,)) or (0,)
    terms = json.dumps({"bans": [user.decode()]})
    endpoint = f"https://push.example/{who.device.name}"
    for into, values in (
        (
            "push_subscriptions (device, endpoint, p256dh, auth, next_stamp, next_welcome)",
            (device, endpoint, bytes(65), bytes(16), 1, 1),
        ),
        ("early_positions (device, hub, masked_key)", (device, hub, b"key of %s" % user)),
        ("connected_devices (device, process)", (device, "process")),
        (
            "requested_partitions (hub, sha256, sha384, sha512, device)",
            (hub, bytes(32), bytes(48), bytes(64), device),
        ),
        ("restored_readers (partition, device)", (partition, device)),
        ("accepted_restrictions (hub, user_id)", (hub, user)),
        (
            "accepted_terms (hub, offered_revision, offered, fetched_at, accepted_revision, accepted, accepted_at)",
            (hub, 1, terms, 0, 1, terms, 0),
        ),
        ("bans (user_id, reason, created_at)", (user, "", 0)),
        ("mutes (user_id, group_id, reason, created_at)", (user, b"", "", 0)),
        (
            "outgoing_welcomes (welcome, partition, provider, refs, state, created_at, sender)",
            (welcome, partition, other, b"\x20" + b"." * 32, "held", NOW * 1000, device),
        ),
        (
            "reports (digest, reporter_device, hub, accused, kind, note, evidence, received_at)",
            (user[:32].ljust(32, b"."), device, "a.example", user.decode(), "", "", b"", NOW * 1000),
        ),
    ):
        tx.execute(f"INSERT INTO {into} VALUES ({', '.join('?' * len(values))})", values)  # noqa: S608  # names above


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
