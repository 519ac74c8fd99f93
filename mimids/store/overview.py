"""Summaries for the operator: groups with their partitions, other providers with their pending pushes, stocks.

These functions only read tables that other modules write. Raw partition keys are not stored, so they cannot be shown.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

import attrs

from mimids.store.engine.transaction import Tx
from mimids.store.partitions import live_forks
from mimids.values import Milliseconds
from mimids.wire.ids import CipherSuite, GroupId, MaskedPartitionKey, ProviderId

LAG_PARTITIONS: Final = 256  # missing messages of a follower are counted in at most so many partitions
COUNTED_FORKS: Final = 250
EVERYTHING: Final = (1 << 31) - 1  # a limit that limits nothing


@attrs.frozen
class GroupSummary:
    """One group in a list."""

    row: int
    hub: ProviderId
    group_id: GroupId
    cipher_suite: CipherSuite
    created_at: Milliseconds
    epoch: int | None  # the highest known epoch
    partitions: int
    detached: int
    messages: int
    live_forks: int  # (semantics: partitions-and-forks)
    linear: bool = attrs.field(converter=bool)  # (semantics: linear-groups)
    successor_group_id: GroupId | None  # the group that replaces it (semantics: replaced-groups)
    successor_hub: ProviderId | None


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
    last_at: Milliseconds | None = None  # when its newest message was accepted, if that is still stored


@attrs.frozen
class PeerSummary:
    """Another provider: what it follows here, its pending messages, and how many of its groups we know."""

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
    """The stock of KeyPackages of one suite: the number of KeyPackages, and of devices that have them."""

    cipher_suite: CipherSuite
    ordinary: int
    devices: int  # with any KeyPackage, last resorts included
    low: int  # of these devices: those with fewer ordinary KeyPackages than `low`
    last_resort_only: int  # of these devices: those with only a last resort


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
    f" (SELECT count(*) FROM ({live_forks('g.id')}) counted), g.linear, g.successor_group_id, g.successor_hub"
    " FROM groups g JOIN providers h ON h.id = g.hub AND g.deleted_at IS NULL"
    " LEFT JOIN partitions p ON p.group_ref = g.id"
)


def group_summaries(tx: Tx) -> list[GroupSummary]:
    """Return all groups, hosted and followed, oldest first."""
    return [GroupSummary(*row) for row in tx.all(f"{_GROUPS} GROUP BY g.id, h.domain ORDER BY g.id")]


def group_summary(tx: Tx, hub: ProviderId, group_id: GroupId) -> GroupSummary | None:
    """Return one group."""
    row = tx.one(f"{_GROUPS} WHERE h.domain = ? AND g.group_id = ? GROUP BY g.id, h.domain", (hub, group_id))
    return None if row is None else GroupSummary(*row)


def group_summaries_of_id(tx: Tx, group_ids: Collection[GroupId]) -> list[GroupSummary]:
    """Return the groups that have one of these ids, at most one for each hub and id."""
    places = ", ".join("?" * len(group_ids))
    rows = tx.all(
        f"{_GROUPS} WHERE g.hub IN (SELECT id FROM providers) AND g.group_id IN ({places}) GROUP BY g.id, h.domain",
        tuple(group_ids),
    )
    return [GroupSummary(*row) for row in rows]


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
        f" terminated_reason, group_info IS NOT NULL, held_welcomes, opened_at, id IN ({live_forks('?1')}),"
        " (SELECT m.accepted_at FROM messages m WHERE m.partition = p.id AND m.counter = p.next_counter - 1)"
        " FROM partitions p WHERE group_ref = ?1 ORDER BY coalesce(opened_by, 0), id",
        (group,),
    )
    found = []
    for id_, key, parent, epoch, count, knowledge, detached, ended, why, info, held, opened_at, forked, last in rows:
        names = tuple(followers.get(id_, ()))
        flags = bool(detached), bool(ended), why, bool(info)
        others = held, opened_at, names, bool(forked)
        found.append(PartitionSummary(id_, key, parent, epoch, count, knowledge, *flags, *others, last_at=last))
    return found


def commits_of_others(tx: Tx, ours: ProviderId) -> tuple[int, int]:
    """Return how many branches of our groups other providers opened, and for how many of these a device is stored.

    The second number must be 0.

    The senders of other messages are not stored.
    """
    found = tx.one(
        "SELECT count(*), count(p.opener_device) FROM partitions p"
        " JOIN providers hub ON hub.id = p.hub WHERE hub.domain = ?1 AND p.opener_provider <> hub.id"
        " AND p.opener_provider > 0",
        (ours,),
    )
    return (0, 0) if found is None else (found[0], found[1])


def newest_moment(tx: Tx) -> Milliseconds:
    """Return when the newest message, user, device or migration was stored, 0 if there is none."""
    found = tx.one(
        "SELECT coalesce((SELECT accepted_at FROM messages ORDER BY seq DESC LIMIT 1), 0),"
        " coalesce((SELECT max(created_at) FROM users), 0), coalesce((SELECT max(created_at) FROM devices), 0),"
        " coalesce((SELECT max(applied_at) FROM schema_version), 0)"
    )
    return Milliseconds(max(found or (0,)))


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
        "  WHERE expires_at > ?1 GROUP BY cipher_suite, device) stock GROUP BY cipher_suite ORDER BY cipher_suite",
        (now, low),
    )
    return [SuiteStock(*row) for row in rows]


def peer_lags(tx: Tx) -> list[tuple[ProviderId, PeerLag]]:
    """Return how far each follower of our groups is behind; the one that is furthest behind comes first.

    Of the partitions that moved since a follower had everything, at most LAG_PARTITIONS are read.
    """
    rows = tx.all(
        "SELECT o.domain, t.provider, t.next_stamp, t.failures, t.next_attempt_at,"
        " (SELECT count(*) FROM follows f WHERE f.provider = t.provider AND f.suspended_reason IS NOT NULL)"
        " FROM peers t JOIN providers o ON o.id = t.provider"
    )
    found = []
    for domain, provider, cursor, failures, next_attempt_at, stuck in rows:
        messages, oldest_at = _behind(tx, provider, cursor)
        found.append((domain, PeerLag(messages, oldest_at, failures, next_attempt_at, stuck)))
    return sorted(found, key=lambda each: (-each[1].messages, each[0]))


def _behind(tx: Tx, provider: int, next_stamp: int) -> tuple[int, Milliseconds | None]:
    """Return how many messages a follower lacks, and when the oldest of them was accepted."""
    rows = tx.all(
        "SELECT p.next_counter - f.next_counter, p.id, f.next_counter"
        " FROM (SELECT partition FROM moved WHERE stamp >= ? ORDER BY stamp LIMIT ?) m CROSS JOIN follows f"
        " CROSS JOIN partitions p WHERE f.provider = ? AND f.partition = m.partition"
        " AND p.id = m.partition AND p.detached = 0 AND f.next_counter < p.next_counter",
        (next_stamp, LAG_PARTITIONS, provider),
    )
    oldest: list[Milliseconds] = []
    for _, partition, counter in rows:
        first = tx.one("SELECT accepted_at FROM messages WHERE partition = ? AND counter = ?", (partition, counter))
        oldest += [] if first is None else [first[0]]
    return sum(row[0] for row in rows), min(oldest, default=None)


def peer_summaries(tx: Tx, ours: ProviderId, *, count_to: int = EVERYTHING) -> list[PeerSummary]:
    """Return every other provider that any row refers to; numbers of rows are counted up to `count_to`."""
    rows = tx.all(
        "SELECT o.domain,"
        " (SELECT count(*) FROM (SELECT 1 FROM follows f WHERE f.provider = o.id LIMIT ?2) counted),"
        " coalesce(t.failures, 0), coalesce(t.next_attempt_at, 0),"
        " (SELECT count(*) FROM (SELECT 1 FROM outgoing_welcomes w"
        "  WHERE w.provider = o.id AND w.state IN ('held', 'due', 'offered') LIMIT ?2) counted),"
        " (SELECT count(*) FROM (SELECT 1 FROM outgoing_welcomes w"
        "  WHERE w.provider = o.id AND w.state = 'refused' LIMIT ?2) counted),"
        " (SELECT count(*) FROM (SELECT 1 FROM groups g WHERE g.hub = o.id AND g.deleted_at IS NULL LIMIT ?2) counted),"
        " (SELECT count(*) FROM follows f WHERE f.provider = o.id AND f.suspended_reason IS NOT NULL),"
        " t.failing_since, o.id, coalesce(t.next_stamp, 0)"
        " FROM providers o LEFT JOIN peers t ON t.provider = o.id WHERE o.domain <> ?1 ORDER BY o.domain",
        (ours, count_to),
    )
    return [
        PeerSummary(domain, follows, _behind(tx, provider, cursor)[0], *others)
        for domain, follows, *others, provider, cursor in rows
    ]


# --- the console's overview: few rows, however many there are ------------------------------------------------------


@attrs.frozen
class GroupTotals:
    """Sums over all groups, hosted and followed."""

    groups: int
    messages: int  # ever sequenced here
    live_forks: int  # among the newest COUNTED_FORKS forks


def newest_groups(tx: Tx, *, limit: int) -> list[GroupSummary]:
    """Return the newest groups, and the newest groups with live forks, up to `limit` of each."""
    newest = tx.all("SELECT id FROM groups WHERE deleted_at IS NULL ORDER BY id DESC LIMIT ?", (limit,))
    forked = tx.all(
        "SELECT DISTINCT group_ref FROM partitions WHERE forked = 1 ORDER BY group_ref DESC LIMIT ?", (limit,)
    )
    found = {row for (row,) in newest}
    summaries = summaries_of_rows(tx, sorted(found | {row for (row,) in forked}))
    return [summary for summary in summaries if summary.row in found or summary.live_forks]


def summaries_of_rows(tx: Tx, rows: Iterable[int]) -> list[GroupSummary]:
    """Return the groups in these rows."""
    found = (tx.one(f"{_GROUPS} WHERE g.id = ? GROUP BY g.id, h.domain", (row,)) for row in rows)
    return [GroupSummary(*each) for each in found if each is not None]


def group_totals(tx: Tx) -> GroupTotals:
    """Return the sums over all groups."""
    found = tx.one(
        "SELECT (SELECT count(*) FROM groups) - (SELECT count(*) FROM groups WHERE deleted_at IS NOT NULL),"
        " (SELECT coalesce(max(seq), 0) FROM messages),"
        " (SELECT count(*) FROM (SELECT id FROM partitions WHERE forked = 1 ORDER BY group_ref DESC LIMIT ?) f"
        "  WHERE 1 < (SELECT count(*) FROM partitions c"
        "   WHERE c.parent = f.id AND c.terminated_by IS NULL AND c.next_counter > 0))",
        (COUNTED_FORKS,),
    )
    return GroupTotals(*(found or (0, 0, 0)))
