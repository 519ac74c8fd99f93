"""Databases of any size, filled in bulk: what a hub has after it served many groups, in its usual proportions.

Every row is one that the server itself could have written, and `mimids check` finds nothing wrong. The size is given in
messages. The number of groups grows with the two-thirds power of it, from 1,000 groups for 10^4 messages to 100,000 for
10^7, so groups are larger in a large database.

Each group has three epochs, and each twentieth one a fork. Nine of 50 providers follow it. Five providers are down, and
lack the messages of the last partitions that moved. A twentieth of the messages is older than all periods of retention,
and kept for devices that are away.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

from mimids.mls.code_points import ContentType
from mimids.store.engine.migrate import migrate
from mimids.store.messages import digest_key
from mimids.wire.ids import GroupId, MaskedPartitionKey, PartitionKey

HUB: Final = "a.example"
FOLLOWERS: Final = 50
DOWN: Final = 5
FOLLOWERS_OF_A_GROUP: Final = 9
EPOCHS: Final = 3
FORK_EVERY: Final = 20  # groups
DEVICES_OF_A_GROUP: Final = 3  # ours
PACKAGES_OF_A_DEVICE: Final = 20
BODY_OCTETS: Final = 256
DAY: Final = 86_400_000
RECENT_DAYS: Final = 25
OLD_DAYS: Final = 800
_CIPHERTEXT_OCTETS: Final = BODY_OCTETS - 62
_SEED: Final = 17


@attrs.frozen
class Sizes:
    """How many rows a database with `messages` messages has."""

    messages: int

    @property
    def groups(self) -> int:
        return round(1000 * float((self.messages / 10_000) ** (2 / 3)))

    @property
    def users(self) -> int:
        return max(DEVICES_OF_A_GROUP, self.groups // 5)

    @property
    def devices(self) -> int:
        return 2 * self.users


@attrs.frozen
class Branch:
    """One partition of a group: `group` counts groups from 0, `place` the partitions of the group."""

    group: int
    place: int

    @property
    def row(self) -> int:
        return 1 + self.group * (EPOCHS + 1) + self.place

    @property
    def epoch(self) -> int:
        return min(self.place, EPOCHS - 1)  # the fork is in the last epoch, too

    @property
    def key(self) -> PartitionKey:
        return PartitionKey(hashlib.sha256(b"partition %d %d" % (self.group, self.place)).digest()[: PartitionKey.SIZE])

    @property
    def mask(self) -> MaskedPartitionKey:
        return MaskedPartitionKey(hashlib.sha256(self.key.reveal()).digest())


def group_id(group: int) -> GroupId:
    """Return the id of a group."""
    return GroupId(hashlib.sha256(b"group %d" % group).digest()[:16])


def branches(group: int) -> list[Branch]:
    """Return the partitions of a group: one for each epoch, and perhaps a second one of the last epoch."""
    return [Branch(group, place) for place in range(EPOCHS + (group % FORK_EVERY == 0))]


def counts(sizes: Sizes, group: int) -> tuple[int, ...]:
    """Return how many messages each partition of a group has; those before the last epoch end with commits."""
    mine = sizes.messages // sizes.groups + (group < sizes.messages % sizes.groups)
    each = mine // EPOCHS
    last = mine - (EPOCHS - 1) * each
    if group % FORK_EVERY:
        return (each,) * (EPOCHS - 1) + (last,)
    return (each,) * (EPOCHS - 1) + (last - last // 2, last // 2)


def fill(path: Path, messages: int, *, now: int) -> None:
    """Make a database with so many messages; `now` is the time in milliseconds since the epoch."""
    migrate(path)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=OFF")
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("PRAGMA cache_size=-400000")
    connection.execute("BEGIN")
    indexes = connection.execute(
        "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND tbl_name = 'messages' AND sql IS NOT NULL"
    ).fetchall()
    for name, _ in indexes:
        connection.execute(f"DROP INDEX {name}")  # made again at the end, which is faster than to fill them
    _Filling(connection, Sizes(messages), now, random.Random(_SEED)).fill()
    for _, sql in indexes:
        connection.execute(sql)
    connection.execute("COMMIT")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()


class _Filling:
    """Fills the tables of one database."""

    def __init__(self, connection: sqlite3.Connection, sizes: Sizes, now: int, chance: random.Random) -> None:
        self._connection = connection
        self._sizes = sizes
        self._now = now
        self._chance = chance
        self._ids = [group_id(n) for n in range(sizes.groups)]
        self._counts = [counts(sizes, n) for n in range(sizes.groups)]
        self._opened: dict[int, int] = {}  # by row of a partition: messages.seq of the commit that opened it
        self._last: dict[int, int] = {}  # by row of a partition: messages.seq of its newest message

    def fill(self) -> None:
        self._providers()
        self._accounts()
        self._messages()
        self._groups()
        self._followers()
        self._stock()
        self._trees()
        self._welcomes()

    def _insert(self, table: str, columns: str, rows: Iterator[tuple[object, ...]]) -> None:
        places = ", ".join("?" * len(columns.split(",")))
        self._connection.executemany(f"INSERT INTO {table} ({columns}) VALUES ({places})", rows)  # noqa: S608

    def _octets(self, count: int) -> bytes:
        return self._chance.randbytes(count)

    def _providers(self) -> None:
        self._connection.execute("INSERT INTO providers (id, domain) VALUES (1, ?)", (HUB,))
        self._insert("providers", "id, domain", ((2 + n, f"p{n}.example") for n in range(FOLLOWERS)))

    def _accounts(self) -> None:
        users, at = range(1, self._sizes.users + 1), self._now - RECENT_DAYS * DAY
        self._insert("users", "id, user_id, created_at", ((n, b"mimi://a.example/u/u%d" % n, at) for n in users))
        self._insert(
            "devices",
            "id, owner, name, token_digest, created_at",
            ((n, 1 + (n - 1) // 2, f"d{n % 2}", self._octets(32), at) for n in range(1, self._sizes.devices + 1)),
        )

    # --- groups ---------------------------------------------------------------------------------------------------

    def _messages(self) -> None:
        columns = "seq, partition, counter, accepted_at, kind, digest, digest_key, next_masked_key, body"
        self._insert("messages", columns, self._message_rows())

    def _message_rows(self) -> Iterator[tuple[object, ...]]:
        """Yield one message of each group in turn; a group's messages are in the order of its epochs."""
        seq = 0
        for number in itertools.count():
            places = {each: _place_of(each, number) for each in set(self._counts)}
            if not any(places.values()):
                return
            for group, each in enumerate(self._counts):
                if (place := places[each]) is not None:
                    seq += 1
                    yield self._message(seq, Branch(group, place.branch), place)

    def _message(self, seq: int, branch: Branch, place: _Place) -> tuple[object, ...]:
        self._last[branch.row] = seq
        key, kind = None, ContentType.APPLICATION
        if place.opens is not None:
            child, kind = Branch(branch.group, place.opens), ContentType.COMMIT
            key, self._opened[child.row] = child.mask, seq
        noise = self._octets(_CIPHERTEXT_OCTETS + 28)
        epoch = branch.epoch.to_bytes(8, "big")
        head = b"\0\1\0\2\x10" + self._ids[branch.group] + epoch + bytes((kind, 0, 28))
        body = head + noise[:28] + (0x4000 | _CIPHERTEXT_OCTETS).to_bytes(2, "big") + noise[28:]
        digest = hashlib.sha256(body).digest()
        at = self._time_of(seq)
        return seq, branch.row, place.counter, at, kind, digest, digest_key(digest), key, body

    def _time_of(self, seq: int) -> int:
        days = OLD_DAYS if seq <= self._sizes.messages // 20 else RECENT_DAYS * (1 - seq / (self._sizes.messages + 1))
        return self._now - int(days * DAY)

    def _groups(self) -> None:
        sizes = self._sizes
        self._insert(
            "groups",
            "id, hub, group_id, version, cipher_suite, creation_digest, creator_device, created_at, retention_due_at",
            (
                (1 + n, 1, self._ids[n], 1, 1, self._octets(32), 1 + n % sizes.devices, self._now - OLD_DAYS * DAY, due)
                for n in range(sizes.groups)
                for due in (self._now + DAY // 2 + n * DAY // (2 * sizes.groups),)
            ),
        )
        self._insert(
            "partitions",
            "id, group_ref, hub, masked_key, parent, opened_by, epoch, next_counter, last_seq, root_hash,"
            " opener_provider, opener_device, opened_at, forked",
            self._partition_rows(),
        )
        self._insert("moved", "partition, stamp", ((row, stamp) for row, stamp in self._last.items()))
        self._insert(
            "participations",
            "group_ref, device, joined_at",
            ((1 + n, device, 0) for n in range(sizes.groups) for device in self._devices_of(n)),
        )
        self._insert(
            "device_cursors",
            "device, partition, next_counter, seen_at",
            (
                (device, Branch(n, EPOCHS - 1).row, self._counts[n][EPOCHS - 1], self._now // 3_600_000 * 3_600_000)
                for n in range(sizes.groups)
                for device in self._devices_of(n)
            ),
        )

    def _partition_rows(self) -> Iterator[tuple[object, ...]]:
        for group in range(self._sizes.groups):
            for branch, count in zip(branches(group), self._counts[group], strict=True):
                parent = None if not branch.place else Branch(group, min(branch.place, EPOCHS - 1) - 1)
                opened = self._opened.get(branch.row)
                root = _node_hash(group, branch.epoch, 0)
                forks = branch.place == EPOCHS - 2 and group % FORK_EVERY == 0
                yield (
                    branch.row,
                    1 + group,
                    1,
                    branch.mask,
                    None if parent is None else parent.row,
                    opened,
                    branch.epoch,
                    count,
                    self._last.get(branch.row, 0),
                    root,
                    1,
                    1 + group % self._sizes.devices,
                    self._now - OLD_DAYS * DAY,
                    int(forks),
                )

    def _devices_of(self, group: int) -> list[int]:
        return [1 + (group * DEVICES_OF_A_GROUP + n) % self._sizes.devices for n in range(DEVICES_OF_A_GROUP)]

    def _followers(self) -> None:
        lacking = self._sizes.messages - self._sizes.messages // 20  # seq from which the providers that are down lack
        self._insert("follows", "provider, partition, next_counter", self._follow_rows(lacking))
        self._insert(
            "peers",
            "provider, next_stamp, failures, next_attempt_at, failing_since",
            (
                (2 + n, lacking, 9, self._now + 200_000, self._now - DAY)
                if n < DOWN
                else (2 + n, self._sizes.messages + 1, 0, 0, None)
                for n in range(FOLLOWERS)
            ),
        )

    def _follow_rows(self, lacking: int) -> Iterator[tuple[object, ...]]:
        """Yield follows in the order of the primary key."""
        following: list[list[int]] = [[] for _ in range(FOLLOWERS)]
        for group in range(self._sizes.groups):
            for n in range(FOLLOWERS_OF_A_GROUP):
                following[(group * 7 + n * 11) % FOLLOWERS].append(group)
        for n, groups in enumerate(following):
            for group in groups:
                for branch, count in zip(branches(group), self._counts[group], strict=True):
                    behind = n < DOWN and self._last.get(branch.row, 0) >= lacking
                    yield 2 + n, branch.row, count - behind

    # --- what is there besides messages -----------------------------------------------------------------------------

    def _stock(self) -> None:
        """Add a stock for each device, and as many KeyPackages that were claimed as there are groups."""
        columns = "id, ref, init_key, device, version, cipher_suite, expires_at, claimed_at, turn, reusable"
        in_stock, expires = self._sizes.devices * PACKAGES_OF_A_DEVICE, self._now + 60 * DAY
        every = range(1, in_stock + self._sizes.groups + 1)

        def device(n: int) -> int:
            return 1 + n % self._sizes.devices

        self._insert(
            "key_package_refs",
            columns,
            (
                (n, self._octets(32), self._octets(32), device(n), 1, 1, expires, *claimed, n <= self._sizes.devices)
                for n in every
                for claimed in ((None, None) if n <= in_stock else (0, 1 + (n - in_stock) // self._sizes.devices),)
            ),
        )
        self._insert(
            "key_packages",
            "id, device, version, cipher_suite, last_resort, expires_at, body",
            ((n, device(n), 1, 1, n <= self._sizes.devices, expires, self._octets(200)) for n in every[:in_stock]),
        )
        self._insert(
            "tokens",
            "id, owner, digest, scheme, label, created_at",
            ((n, n, token_digest(n), "shared", "", self._now) for n in range(1, self._sizes.users + 1)),
        )

    def _trees(self) -> None:
        """Add the nodes of a tree of four members for each group; a later epoch shares all but a path of three."""
        rows = [row for group in range(self._sizes.groups) for row in self._nodes(group)]
        self._insert("tree_nodes", "hash, node, left_hash, right_hash", iter(sorted(rows)))

    def _nodes(self, group: int) -> Iterator[tuple[object, ...]]:
        for epoch in range(EPOCHS):
            left, right, leaf = (_node_hash(group, epoch, 1), _node_hash(group, 0, 2), _node_hash(group, epoch, 3))
            yield _node_hash(group, epoch, 0), self._octets(150), left, right
            yield left, self._octets(150), leaf, _node_hash(group, 0, 4)
            yield leaf, self._octets(150), b"", b""
        yield _node_hash(group, 0, 2), self._octets(150), _node_hash(group, 0, 5), _node_hash(group, 0, 6)
        for node in (4, 5, 6):
            yield _node_hash(group, 0, node), self._octets(150), b"", b""

    def _welcomes(self) -> None:
        groups = range(1, self._sizes.groups + 1)
        at = self._now // 3_600_000 * 3_600_000
        self._insert("welcomes", "id, digest, body, stored_at", ((n, self._octets(32), b"", at) for n in groups))
        self._insert(
            "outgoing_welcomes",
            "id, welcome, partition, provider, refs, state, created_at",
            ((n, n, Branch(n - 1, 1).row, 2 + n % FOLLOWERS, self._octets(33), "delivered", at) for n in groups),
        )
        self._insert(
            "inbox",
            "device, welcome, hub, arrived_at, acknowledged_at",
            ((1 + n % self._sizes.devices, n, 2 + n % FOLLOWERS, at, at) for n in groups),
        )


def token_octets(user: int) -> bytes:
    """Return the octets of the bearer token of a user."""
    return hashlib.sha256(b"token %d" % user).digest()[:16]


def token_digest(user: int) -> bytes:
    """Return what is stored of the bearer token of a user."""
    return hashlib.sha256(token_octets(user)).digest()


def _node_hash(group: int, epoch: int, node: int) -> bytes:
    return hashlib.sha256(b"node %d %d %d" % (group, epoch, node)).digest()


@attrs.frozen
class _Place:
    """Where a message of a group is: place of the partition, counter, and the place of the partition that it opens."""

    branch: int
    counter: int
    opens: int | None


def _place_of(counts_: tuple[int, ...], number: int) -> _Place | None:
    """Return where the message of a number is in a group with so many messages in its partitions."""
    for branch, count in enumerate(counts_):
        if number < count:
            opens = branch + 1 if branch < EPOCHS - 1 and number == count - 1 else None
            if len(counts_) > EPOCHS and branch == EPOCHS - 2 and number == count - 2:
                opens = EPOCHS  # the fork
            return _Place(branch, number, opens)
        number -= count
    return None
