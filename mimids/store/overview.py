"""Summaries for the operator: groups with their partitions, other providers with their pending pushes, stocks.

These functions only read tables that other modules write. Raw partition keys are not stored, so none can be shown.
"""

from __future__ import annotations

import attrs

from mimids.store.engine.transaction import Tx
from mimids.store.partitions import live_forks
from mimids.values import Milliseconds
from mimids.wire.ids import CipherSuite, GroupId, MaskedPartitionKey, ProviderId


@attrs.frozen
class GroupSummary:
    """One group in a list."""

    row: int
    hub: ProviderId
    group_id: GroupId
    cipher_suite: CipherSuite
    created_at: Milliseconds
    epoch: int | None  # the highest known
    partitions: int
    detached: int
    messages: int
    live_forks: int  # (semantics: partitions-and-forks)


@attrs.frozen
class PartitionSummary:
    """One partition in the tree of a group."""

    row: int
    masked_key: MaskedPartitionKey
    parent: int | None
    epoch: int | None
    messages: int
    knowledge: str  # "derived", "claimed", "unknown"
    detached: bool
    terminated: bool
    terminated_reason: str | None  # only on the partition that the operator terminated
    has_group_info: bool
    held_welcomes: int
    opened_at: Milliseconds
    followers: tuple[ProviderId, ...]
    live_fork: bool = False  # at least two open branches below carry messages


@attrs.frozen
class PeerSummary:
    """Another provider: what it follows here, what it has not received yet, and its groups that we know."""

    provider: ProviderId
    follows: int  # partitions of ours
    behind: int  # messages that it has not acknowledged
    failures: int  # in a row
    next_attempt_at: Milliseconds
    welcomes_waiting: int
    welcomes_refused: int
    groups: int  # its groups that we know
    stuck: int = 0  # partitions of ours whose delivery to it is suspended: retrying cannot help
    failing_since: Milliseconds | None = None


@attrs.frozen
class SuiteStock:
    """The stock of KeyPackages of one suite: how many, and of how many devices."""

    cipher_suite: CipherSuite
    ordinary: int
    devices: int  # with any KeyPackage, last resorts included
    low: int  # of these devices: those with fewer ordinary KeyPackages than `low`
    last_resort_only: int  # of these devices: those with nothing but a last resort


@attrs.frozen
class PeerLag:
    """How far a follower of our groups is behind."""

    messages: int
    oldest_at: Milliseconds | None  # when the oldest message that it lacks was accepted
    failures: int  # in a row
    next_attempt_at: Milliseconds
    stuck: int  # partitions whose delivery is suspended: retrying cannot help


_GROUPS = (
    "SELECT g.id, h.domain, g.group_id, g.cipher_suite, g.created_at, max(p.epoch), count(p.id),"
    " coalesce(sum(p.detached), 0), coalesce(sum(p.next_counter), 0),"
    f" (SELECT count(*) FROM ({live_forks('g.id')}))"
    " FROM groups g JOIN providers h ON h.id = g.hub LEFT JOIN partitions p ON p.group_ref = g.id"
)


def group_summaries(tx: Tx) -> list[GroupSummary]:
    """Return all groups, hosted and followed, oldest first."""
    return [GroupSummary(*row) for row in tx.all(f"{_GROUPS} GROUP BY g.id ORDER BY g.id")]


def group_summary(tx: Tx, hub: ProviderId, group_id: GroupId) -> GroupSummary | None:
    """Return one group."""
    row = tx.one(f"{_GROUPS} WHERE h.domain = ? AND g.group_id = ? GROUP BY g.id", (hub, group_id))
    return None if row is None else GroupSummary(*row)


def partition_summaries(tx: Tx, group: int) -> list[PartitionSummary]:
    """Return all partitions of a group in the order of the commits that opened them."""
    followers: dict[int, list[ProviderId]] = {}
    for partition, domain in tx.all(
        "SELECT f.partition, o.domain FROM follows f JOIN partitions p ON p.id = f.partition"
        " JOIN providers o ON o.id = f.provider WHERE p.group_ref = ? ORDER BY o.domain",
        (group,),
    ):
        followers.setdefault(partition, []).append(domain)
    rows = tx.all(
        "SELECT id, masked_key, parent, epoch, next_counter, knowledge, detached, terminated_by IS NOT NULL,"
        f" terminated_reason, group_info IS NOT NULL, held_welcomes, opened_at, id IN ({live_forks('?1')})"
        " FROM partitions WHERE group_ref = ?1 ORDER BY coalesce(opened_by, 0), id",
        (group,),
    )
    found = []
    for id_, key, parent, epoch, count, knowledge, detached, ended, why, info, held, opened_at, forked in rows:
        names = tuple(followers.get(id_, ()))
        flags = bool(detached), bool(ended), why, bool(info)
        found.append(
            PartitionSummary(id_, key, parent, epoch, count, knowledge, *flags, held, opened_at, names, bool(forked))
        )
    return found


def senders_of_others(tx: Tx, ours: ProviderId) -> tuple[int, int]:
    """Return how many messages other providers sent to our groups, and for how many a device is stored (must be 0)."""
    found = tx.one(
        "SELECT count(*), count(m.sender_device) FROM messages m JOIN partitions p ON p.id = m.partition"
        " JOIN providers hub ON hub.id = p.hub WHERE hub.domain = ?1 AND m.sender_provider <> hub.id",
        (ours,),
    )
    return (0, 0) if found is None else (found[0], found[1])


def newest_moment(tx: Tx) -> Milliseconds:
    """Return when the newest message, user, device or migration was stored, 0 if there is none."""
    found = tx.one(
        "SELECT max(coalesce((SELECT accepted_at FROM messages ORDER BY seq DESC LIMIT 1), 0),"
        " coalesce((SELECT max(created_at) FROM users), 0), coalesce((SELECT max(created_at) FROM devices), 0),"
        " coalesce((SELECT max(applied_at) FROM schema_version), 0))"
    )
    return Milliseconds(0 if found is None else found[0])


def devices_without_stock(tx: Tx, now: Milliseconds) -> tuple[int, int]:
    """Return the number of devices, and how many of them have no KeyPackage in stock."""
    found = tx.one(
        "SELECT count(*), count(*) FILTER (WHERE NOT EXISTS"
        " (SELECT 1 FROM key_packages k WHERE k.device = devices.id AND k.expires_at > ?)) FROM devices",
        (now,),
    )
    return (0, 0) if found is None else (found[0], found[1])


def stock_by_suite(tx: Tx, now: Milliseconds, *, low: int) -> list[SuiteStock]:
    """Return the stock of each cipher suite."""
    rows = tx.all(
        "SELECT cipher_suite, sum(ordinary), count(*), count(*) FILTER (WHERE ordinary < ?2),"
        " count(*) FILTER (WHERE ordinary = 0)"
        " FROM (SELECT cipher_suite, device, count(*) FILTER (WHERE last_resort = 0) AS ordinary FROM key_packages"
        "  WHERE expires_at > ?1 GROUP BY cipher_suite, device) GROUP BY cipher_suite ORDER BY cipher_suite",
        (now, low),
    )
    return [SuiteStock(*row) for row in rows]


def peer_lags(tx: Tx) -> list[tuple[ProviderId, PeerLag]]:
    """Return how far each follower of our groups is behind, the furthest first."""
    rows = tx.all(
        "SELECT o.domain, coalesce(d.messages, 0) AS messages, d.oldest_at, t.failures, t.next_attempt_at,"
        " (SELECT count(*) FROM follows f WHERE f.provider = t.provider AND f.suspended_reason IS NOT NULL)"
        " FROM peers t JOIN providers o ON o.id = t.provider LEFT JOIN"
        " (SELECT f.provider, sum(p.next_counter - f.next_counter) AS messages,"
        "  min((SELECT m.accepted_at FROM messages m WHERE m.partition = p.id AND m.counter = f.next_counter))"
        "  AS oldest_at FROM follows f JOIN partitions p ON p.id = f.partition"
        "  WHERE f.next_counter < p.next_counter AND p.detached = 0 GROUP BY f.provider) d"
        " ON d.provider = t.provider ORDER BY messages DESC, o.domain"
    )
    return [(row[0], PeerLag(*row[1:])) for row in rows]


def peer_summaries(tx: Tx, ours: ProviderId) -> list[PeerSummary]:
    """Return every other provider that any row refers to."""
    rows = tx.all(
        "SELECT o.domain,"
        " (SELECT count(*) FROM follows f WHERE f.provider = o.id),"
        " (SELECT coalesce(sum(max(0, p.next_counter - f.next_counter)), 0) FROM follows f"
        "  JOIN partitions p ON p.id = f.partition WHERE f.provider = o.id),"
        " coalesce(t.failures, 0), coalesce(t.next_attempt_at, 0),"
        " (SELECT count(*) FROM outgoing_welcomes w WHERE w.provider = o.id AND w.state IN ('held', 'due', 'offered')),"
        " (SELECT count(*) FROM outgoing_welcomes w WHERE w.provider = o.id AND w.state = 'refused'),"
        " (SELECT count(*) FROM groups g WHERE g.hub = o.id),"
        " (SELECT count(*) FROM follows f WHERE f.provider = o.id AND f.suspended_reason IS NOT NULL), t.failing_since"
        " FROM providers o LEFT JOIN peers t ON t.provider = o.id WHERE o.domain <> ? ORDER BY o.domain",
        (ours,),
    )
    return [PeerSummary(*row) for row in rows]
