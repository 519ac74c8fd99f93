"""What the page of one group shows: its facts, and its partitions as a tree with a row of facts for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import attrs

from mimids.ds.groups.tree_layout import PartitionTree, TreeRow, lay_out
from mimids.http.console.parts import (
    Alert,
    Badge,
    Cell,
    CodeText,
    Hyperlink,
    counted,
    moment,
    number,
    short_moment,
)
from mimids.http.console.tree import NARROW, WIDE, Drawing, draw
from mimids.store.overview import GroupSummary, PartitionSummary
from mimids.values import Milliseconds
from mimids.wire.base64url import base64url
from mimids.wire.ids import ProviderId

KEY_DIGITS: Final = 8  # hex digits shown of a masked partition key
BAR_PIXELS: Final = 48
LEGEND: Final = (
    ("derived", "state known from the group's own commits"),
    ("claimed", "state known from a GroupInfo only"),
    ("unknown", "state not known to the server, only to members"),
    ("fork", "live fork: more than one branch below carries messages"),
    ("terminated", "terminated: can be read, but takes no new messages"),
    ("detached", "detached: no known commit leads to it"),
)


@attrs.frozen
class PartitionRow:
    """One row beside the drawing."""

    epoch: str
    key: Cell
    messages: int
    bar: int  # pixels
    state: str
    notes: Sequence[Cell]
    opened: str
    last: str | None  # when the newest message was accepted, if it is still stored
    followers: str
    folded: bool
    acts: Sequence[Cell]


@attrs.frozen
class GroupView:
    """The data of a group's page."""

    provider: ProviderId  # this provider
    group: GroupSummary
    partitions: Sequence[PartitionSummary]
    waits_for: Sequence[str]  # providers whose answers are awaited since a restore

    def alerts(self) -> Iterator[Alert]:
        """Yield what needs the operator."""
        if self.group.live_forks and self.group.hub == self.provider:
            what = counted(self.group.live_forks, "live fork")
            yield Alert("warn", what, "if the fork persists, ask the members which branch to terminate")
        if self.waits_for:
            held = f"held since a restore, waiting for answers from {', '.join(self.waits_for)}"
            yield Alert("warn", held, "if a provider will never answer, release the group from the wait for it")

    def facts(self) -> list[tuple[str, Cell]]:
        """Return the facts above the drawing."""
        group, ended = self.group, sum(each.terminated for each in self.partitions)
        newest = max((each.last_at or each.opened_at for each in self.partitions), default=group.created_at)
        return [
            ("hub", f"{group.hub} (this provider)" if group.hub == self.provider else group.hub),
            ("cipher suite", str(group.cipher_suite)),
            ("since", moment(group.created_at)),
            ("last activity", moment(newest)),
            ("messages", number(group.messages)),
            ("partitions", f"{number(group.partitions)}, {group.detached} detached, {ended} terminated"),
            ("commits", "the first of an epoch wins (linear)" if group.linear else "each opens a branch"),
            ("group id", CodeText(base64url(group.group_id))),
            *self._successor(),
        ]

    def _successor(self) -> Iterator[tuple[str, Cell]]:
        if self.group.successor_group_id is not None:
            name = CodeText(base64url(self.group.successor_group_id))
            yield "replaced by", [name, f"at {self.group.successor_hub}"]

    def tree(self) -> PartitionTree:
        """Return the partitions laid out in rows."""
        return lay_out(self.partitions)


def drawings(tree: PartitionTree) -> list[Drawing]:
    """Return the drawing for a wide screen and the drawing for a narrow screen."""
    return [draw(tree, WIDE), draw(tree, NARROW)]


def rows(tree: PartitionTree, acts: Mapping[int, Sequence[Hyperlink]], now: Milliseconds) -> list[PartitionRow]:
    """Return a row for each row of the drawing; `acts` has the acts on each partition, by its row in the database."""
    most = max((row.messages for row in tree.rows if not row.folded), default=0)
    return [_row(row, most, [] if row.folded else acts.get(row.partition.row, []), now) for row in tree.rows]


def _row(row: TreeRow, most: int, acts: Sequence[Hyperlink], now: Milliseconds) -> PartitionRow:
    each = row.partition
    epoch, key = ("?" if each.epoch is None else str(each.epoch)), each.masked_key.hex()
    last_epoch = "" if each.epoch is None else f"to {epoch}"
    return PartitionRow(
        epoch=f"{number(row.folded)} epochs" if row.folded else epoch,
        key=last_epoch if row.folded else CodeText(key[:KEY_DIGITS], title=key),
        messages=row.messages,
        bar=0 if row.folded or not row.messages else max(2, round(BAR_PIXELS * row.messages / most)),
        state=each.knowledge,
        notes=list(_notes(each)),
        opened=short_moment(each.opened_at, now),
        last=None if each.last_at is None else short_moment(each.last_at, now),
        followers=", ".join(each.followers),
        folded=bool(row.folded),
        acts=acts,
    )


def _notes(each: PartitionSummary) -> Iterator[Badge]:
    if each.live_fork:
        yield Badge("fork", "live fork")
    if each.detached:
        yield Badge("detached", "detached")
    if each.terminated:
        yield Badge("ended", "terminated" + (f": {each.terminated_reason}" if each.terminated_reason else ""))
    if each.held_welcomes:
        yield Badge("note", f"{counted(each.held_welcomes, 'Welcome')} held")
