"""Removed users and devices whose leaves have to leave their groups (semantics: departures).

A removal keeps no name, only digests by which a leaf can be recognised. A departure is one leaf of a removed device at
the tip of a branch. Its row has nothing about the leaf that the stored tree does not have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

import attrs

from mimids.store import moved
from mimids.store.engine.transaction import Tx
from mimids.store.moved import StampPage
from mimids.values import DeviceRow, Milliseconds, UserRow
from mimids.wire.ids import GroupId, ProviderId, UserId, folded

NOT_KNOWN: Final = -1  # in `DepartingLeaf.leaf`
ANYWHERE: Final = 0  # in `DepartingLeaf.partition`: the device was seen in the group
STATE_COMES_MILLISECONDS: Final = 5000  # how long after a removal a push may bring the state of a group
SEARCHING: Final = "searching"
DUE: Final = "due"
PROPOSED: Final = "proposed"
IMPOSSIBLE: Final = "impossible"


@attrs.frozen
class Removal:
    """A removed user or device: digests of the user's id, of `USER/d/DEVICE`, and of the signature keys.

    `device_digest` is None if the whole user was removed.
    """

    id: int
    user_digest: bytes
    device_digest: bytes | None
    keys: frozenset[bytes]


@attrs.frozen
class SearchProgress:
    """How far groups were searched for all removals together."""

    next_group: int | None  # None: every group has been searched
    next_stamp: int
    newest: int  # the highest id of a removal
    undated: bool  # a removal has no time yet, because the job has not seen it


@attrs.frozen
class DepartingLeaf:
    """A leaf that has to leave, as a search found it; in the state IMPOSSIBLE, `reason` says why."""

    removal: int
    partition: int
    leaf: int
    identity: bytes | None
    state: str
    reason: str | None = None
    message: bytes | None = None

    @property
    def place(self) -> tuple[int, int, int]:
        """Return the values that distinguish this departure from other departures of its group."""
        return self.removal, self.partition, self.leaf


@attrs.frozen
class DueRemove:
    """A Remove that is to be sequenced."""

    id: int
    hub: ProviderId
    partition: bytes  # its masked key
    message: bytes
    failures: int


@attrs.frozen
class ListedDeparture:
    """A departure as an operator sees it."""

    removal: int
    removed_at: Milliseconds | None
    hub: ProviderId
    group_id: GroupId
    identity: bytes | None
    leaf: int
    state: str
    reason: str | None
    failures: int
    next_attempt_at: Milliseconds


# --- removals ---------------------------------------------------------------------------------------------------


def user_digest(user: UserId) -> bytes:
    """Return the digest by which a removed user is recognised."""
    return hashlib.sha256(b"mimids removed user" + user).digest()


def device_digest(user: UserId, device: str) -> bytes:
    """Return the digest by which a removed device is recognised; names are compared without case."""
    return hashlib.sha256(b"mimids removed device" + user + b"/d/" + folded(device).encode()).digest()


# The groups in which devices were seen; {devices} stands for a condition on the number of a device.
_GROUPS: Final = (
    "(SELECT group_ref FROM participations WHERE left_at IS NULL AND device {devices}"
    " UNION SELECT p.group_ref FROM device_cursors c JOIN partitions p ON p.id = c.partition WHERE c.device {devices}"
    " UNION SELECT id FROM groups WHERE creator_device {devices}"
    " UNION SELECT group_ref FROM partitions WHERE opener_device {devices})"
)
# A group whose state is known nowhere needs no search.
_ADD_GROUPS: Final = (
    "INSERT INTO departures (removal, group_ref, partition, leaf, state, reason) SELECT ?, g.id, 0, -1,"
    " CASE WHEN EXISTS (SELECT 1 FROM partitions p WHERE p.group_ref = g.id AND p.knowledge <> 'unknown')"
    " THEN 'searching' ELSE 'impossible' END,"
    " CASE g.encrypted_handshakes WHEN 1 THEN 'encrypted-handshakes' ELSE 'state-unknown' END"
    " FROM groups g WHERE g.deleted_at IS NULL AND g.id IN "
)


def note_removed_device(tx: Tx, device: DeviceRow) -> None:
    """Record that a device is about to be removed; call this before rows of the device are deleted."""
    found = tx.one(
        "SELECT user_id, name FROM devices JOIN users ON users.id = devices.owner WHERE devices.id = ?", (device,)
    )
    if found is not None:
        user = UserId(found[0])
        _note(tx, user_digest(user), device_digest(user, found[1]), f"= {int(device)}")


def note_removed_user(tx: Tx, user: UserRow) -> None:
    """Record that a user with all devices is about to be removed; call this before rows of the devices are deleted."""
    found = tx.one("SELECT user_id FROM users WHERE id = ?", (user,))
    if found is not None:
        _note(tx, user_digest(UserId(found[0])), None, f"IN (SELECT id FROM devices WHERE owner = {int(user)})")


def _note(tx: Tx, user: bytes, device: bytes | None, devices: str) -> None:
    expiry = tx.one(f"SELECT coalesce(max(expires_at), 0) FROM key_package_refs WHERE device {devices}")
    removal = tx.insert(
        "INSERT INTO removals (user_digest, device_digest, packages_expire_at, next_group, next_stamp)"
        " VALUES (?, ?, ?, 0, ?) RETURNING id",
        (user, device, expiry[0] if expiry else 0, moved.settled(tx)),
    )
    tx.execute(
        "INSERT INTO removal_keys (removal, digest) SELECT DISTINCT CAST(? AS BIGINT), digest"
        f" FROM device_signature_keys WHERE device {devices}",
        (removal,),
    )
    tx.execute(_ADD_GROUPS + _GROUPS.replace("{devices}", devices), (removal,))


def search(tx: Tx) -> SearchProgress | None:
    """Return how far the search for all removals is, None if there are no removals."""
    found = tx.one(
        "SELECT min(next_group), min(next_stamp), max(id), sum(CASE WHEN removed_at IS NULL THEN 1 ELSE 0 END)"
        " FROM removals"
    )
    return None if found is None or found[2] is None else SearchProgress(found[0], found[1], found[2], bool(found[3]))


def every_removal(tx: Tx) -> list[Removal]:
    """Return all removals."""
    keys: dict[int, set[bytes]] = {}
    for removal, digest in tx.all("SELECT removal, digest FROM removal_keys"):
        keys.setdefault(removal, set()).add(digest)
    rows = tx.all("SELECT id, user_digest, device_digest FROM removals ORDER BY id")
    return [Removal(row[0], row[1], row[2], frozenset(keys.get(row[0], ()))) for row in rows]


def date_removals(tx: Tx, now: Milliseconds) -> None:
    """Set the time of removals that have no time yet."""
    tx.execute("UPDATE removals SET removed_at = ? WHERE removed_at IS NULL", (now,))


def move_search(tx: Tx, newest: int, *, next_group: int | None, next_stamp: int) -> None:
    """Record how far the search is, for the removals up to `newest`."""
    tx.execute("UPDATE removals SET next_stamp = ? WHERE id <= ? AND next_stamp < ?", (next_stamp, newest, next_stamp))
    tx.execute("UPDATE removals SET next_group = ? WHERE id <= ? AND next_group IS NOT NULL", (next_group, newest))


def search_again(tx: Tx) -> None:
    """Search all groups again: after a restore, and if there was no room for all departures."""
    tx.execute("UPDATE removals SET next_group = 0, next_stamp = ?", (moved.settled(tx),))


def forget_finished(tx: Tx, now: Milliseconds, *, watch_milliseconds: int) -> int:
    """Delete the removals that are no longer watched; return how many.

    A removal is watched until `watch_milliseconds` have passed, the KeyPackages of its devices have expired, and no
    known leaf of the removed device is in a group. The removal's departures in groups of unknown state are deleted too.
    """
    over = "removed_at + ? < ? AND packages_expire_at < ? AND next_group IS NULL"
    times = (watch_milliseconds, now, now)
    tx.execute(
        f"DELETE FROM departures WHERE partition = 0 AND removal IN (SELECT id FROM removals WHERE {over})", times
    )
    return tx.execute(
        f"DELETE FROM removals WHERE {over} AND NOT EXISTS (SELECT 1 FROM departures d WHERE d.removal = removals.id)",
        times,
    )


# --- groups to search -------------------------------------------------------------------------------------------


def groups_page(tx: Tx, start: int, *, limit: int) -> list[int]:
    """Return up to `limit` groups from row `start` on, in ascending order."""
    rows = tx.all("SELECT id FROM groups WHERE id >= ? AND deleted_at IS NULL ORDER BY id LIMIT ?", (start, limit))
    return [row[0] for row in rows]


def moved_on(tx: Tx, page: StampPage) -> list[tuple[int, int, str, int]]:
    """Return the partitions with a stamp on a page: row, group, knowledge, newest child or 0."""
    rows = tx.all(
        "SELECT p.id, p.group_ref, p.knowledge, (SELECT coalesce(max(c.id), 0) FROM partitions c WHERE c.parent = p.id)"
        " FROM moved m CROSS JOIN partitions p WHERE m.stamp >= ? AND m.stamp < ? AND p.id = m.partition",
        (page.start, page.end),
    )
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def groups_with_departures(tx: Tx) -> list[int]:
    """Return the groups that have departures."""
    return [row[0] for row in tx.all("SELECT DISTINCT group_ref FROM departures ORDER BY group_ref")]


# --- departures -------------------------------------------------------------------------------------------------


def departures_of(tx: Tx, group: int) -> list[DepartingLeaf]:
    """Return the departures of a group."""
    rows = tx.all(
        "SELECT removal, partition, leaf, identity, state, reason, message FROM departures WHERE group_ref = ?",
        (group,),
    )
    return [DepartingLeaf(*row) for row in rows]


def is_awaited(tx: Tx, group: int, now: Milliseconds) -> bool:
    """Tell whether a removed device is, or may be, in a group from which it can be removed.

    Just after the removal, a group whose state is not known counts too, because a push that shows the state may be on
    its way.
    """
    query = (
        "SELECT 1 FROM departures d JOIN removals r ON r.id = d.removal WHERE d.group_ref = ?"
        " AND (d.state IN ('searching', 'due', 'proposed') OR (d.partition = 0 AND r.removed_at > ?)) LIMIT 1"
    )
    return tx.one(query, (group, now - STATE_COMES_MILLISECONDS)) is not None


def put_departures(tx: Tx, group: int, found: Iterable[DepartingLeaf], *, in_group: int, at_hub: int) -> bool:
    """Replace the departures of a group by the departures that a search found. Return False if some are not stored.

    A Remove that is due or was sequenced stays unchanged, even if the search found its leaf again. A group has at most
    `in_group` departures, and a hub at most `at_hub` Removes that are due or sequenced; further departures are not
    stored. So a group with many leaves that only claim to be a removed device cannot take the room of other groups.
    """
    removals = {row[0] for row in tx.all("SELECT id FROM removals")}  # a removal may have ended during the search
    certain_first = sorted(found, key=lambda each: each.state == IMPOSSIBLE)
    known = [each for each in certain_first if each.removal in removals]
    new = {each.place: each for each in known[:in_group]}
    before = departures_of(tx, group)
    for row in before:
        same = new.get(row.place)
        if same is None:
            tx.execute(
                "DELETE FROM departures WHERE removal = ? AND group_ref = ? AND partition = ? AND leaf = ?",
                (row.removal, group, row.partition, row.leaf),
            )
            continue
        under_way = same.state == DUE and row.state in (DUE, PROPOSED)
        if under_way or (same.state, same.reason) == (row.state, row.reason):
            del new[row.place]
    added = sum(each.state in (DUE, PROPOSED) for each in new.values())
    if added and _count_at_hub(tx, group, at_most=at_hub) + added > at_hub:
        return False
    tx.executemany(
        "INSERT INTO departures (removal, group_ref, partition, leaf, identity, state, reason, message)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (removal, group_ref, partition, leaf) DO UPDATE SET identity = excluded.identity,"
        " state = excluded.state, reason = excluded.reason, message = excluded.message, failures = 0,"
        " next_attempt_at = 0",
        [
            (each.removal, group, each.partition, each.leaf, each.identity, each.state, each.reason, each.message)
            for each in new.values()
        ],
    )
    return len(known) <= in_group


def _count_at_hub(tx: Tx, group: int, *, at_most: int) -> int:
    found = tx.one(
        "SELECT count(*) FROM (SELECT 1 FROM departures d CROSS JOIN groups g WHERE g.id = d.group_ref"
        " AND d.state IN ('due', 'proposed') AND g.hub = (SELECT hub FROM groups WHERE id = ?) LIMIT ?) counted",
        (group, at_most),
    )
    return int(found[0]) if found else 0


def hubs_due(tx: Tx, now: Milliseconds) -> list[ProviderId]:
    """Return the hubs for which a Remove is due."""
    rows = tx.all(
        "SELECT DISTINCT o.domain FROM departures d CROSS JOIN groups g CROSS JOIN providers o CROSS JOIN partitions p"
        " WHERE g.id = d.group_ref AND o.id = g.hub AND p.id = d.partition"
        " AND d.state = 'due' AND d.next_attempt_at <= ?",
        (now,),
    )
    return [row[0] for row in rows]


def due_at(tx: Tx, hub: ProviderId, now: Milliseconds, *, limit: int) -> list[DueRemove]:
    """Return up to `limit` Removes that are due at a hub, in the order in which they were found."""
    rows = tx.all(
        "SELECT d.id, o.domain, p.masked_key, d.message, d.failures FROM departures d"
        " CROSS JOIN groups g CROSS JOIN providers o CROSS JOIN partitions p"
        " WHERE g.id = d.group_ref AND o.id = g.hub AND p.id = d.partition"
        " AND d.state = 'due' AND d.next_attempt_at <= ? AND o.domain = ? ORDER BY d.id LIMIT ?",
        (now, hub, limit),
    )
    return [DueRemove(*row) for row in rows]


def note_proposed(tx: Tx, departure: int) -> None:
    """Record that a Remove was sequenced."""
    tx.execute(
        "UPDATE departures SET state = 'proposed', reason = NULL, failures = 0 WHERE id = ? AND state = 'due'",
        (departure,),
    )


def note_refused(tx: Tx, departure: int, reason: str) -> None:
    """Record that the hub refused a Remove; the next search of the group makes it due again."""
    tx.execute(
        "UPDATE departures SET state = 'impossible', reason = ? WHERE id = ? AND state = 'due'", (reason, departure)
    )


def note_failure(tx: Tx, departure: int, reason: str, next_attempt_at: Milliseconds) -> None:
    """Record that a Remove has to be tried again later."""
    tx.execute(
        "UPDATE departures SET failures = failures + 1, next_attempt_at = ?, reason = ? WHERE id = ? AND state = 'due'",
        (next_attempt_at, reason, departure),
    )


def postpone(tx: Tx, hub: ProviderId, reason: str, next_attempt_at: Milliseconds) -> None:
    """Record that all Removes of a hub have to be tried again later."""
    tx.execute(
        "UPDATE departures SET failures = failures + 1, next_attempt_at = ?, reason = ? WHERE state = 'due'"
        " AND (SELECT g.hub FROM groups g WHERE g.id = departures.group_ref)"
        " = (SELECT id FROM providers WHERE domain = ?)",
        (next_attempt_at, reason, hub),
    )


def try_all_after(tx: Tx, latest: Milliseconds) -> None:
    """End the back-offs that last beyond `latest`: no back-off is that long, so the clock was ahead when it began."""
    tx.execute("UPDATE departures SET next_attempt_at = 0 WHERE state = 'due' AND next_attempt_at > ?", (latest,))


def is_any_after(tx: Tx, latest: Milliseconds) -> bool:
    """Tell whether there is a back-off that lasts beyond `latest`."""
    return tx.one("SELECT 1 FROM departures WHERE state = 'due' AND next_attempt_at > ? LIMIT 1", (latest,)) is not None


def try_soon(tx: Tx, hubs: Sequence[ProviderId]) -> None:
    """End the back-off of all Removes of these hubs."""
    tx.executemany(
        "UPDATE departures SET next_attempt_at = 0 WHERE state = 'due'"
        " AND (SELECT g.hub FROM groups g WHERE g.id = departures.group_ref)"
        " = (SELECT id FROM providers WHERE domain = ?)",
        [(hub,) for hub in hubs],
    )


def listed(tx: Tx, *, limit: int) -> list[ListedDeparture]:
    """Return up to `limit` departures: impossible departures first, then the oldest."""
    rows = tx.all(
        "SELECT d.removal, r.removed_at, o.domain, g.group_id, d.identity, d.leaf, d.state, d.reason, d.failures,"
        " d.next_attempt_at FROM departures d JOIN removals r ON r.id = d.removal JOIN groups g ON g.id = d.group_ref"
        " JOIN providers o ON o.id = g.hub"
        " ORDER BY CASE d.state WHEN 'impossible' THEN 0 ELSE 1 END, d.id LIMIT ?",
        (limit,),
    )
    return [ListedDeparture(*row) for row in rows]


def count_by_state(tx: Tx) -> dict[str, int]:
    """Count the departures in each state."""
    return dict(tx.all("SELECT state, count(*) FROM departures GROUP BY state"))
