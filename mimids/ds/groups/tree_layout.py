"""The layout of a group's partitions as a tree, for the console and the command line.

Time runs downwards. The console draws rows in lanes: each branch of a fork has a lane. To keep the drawing of an old
group to a page, long stretches without forks are folded into one row, and only the newest rows are drawn. The command
line draws each partition on a line, with a margin that shows its branch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import Final, TypeVar

import attrs

from mimids.store.overview import PartitionSummary

UNFOLDED: Final = 30  # a group with no more partitions than this is drawn without folding
FOLD_FROM: Final = 3  # a stretch of more partitions than this is folded
NESTED: Final = 24  # branches within branches that have a column of their own in a margin
ROWS: Final = 300  # at most this many rows are drawn: the newest

N = TypeVar("N")
_Stretch = list[PartitionSummary]  # one row: a partition, or several partitions, each the parent of the next


@attrs.frozen
class TreeRow:
    """One row of the drawing: one partition, or `folded` partitions of which `partition` is the last."""

    partition: PartitionSummary
    lane: int
    parent: int | None  # the number of an earlier row
    folded: int  # the number of partitions; 0 if it is only one
    messages: int


@attrs.frozen
class PartitionTree:
    """The rows of a drawing, and how many partitions before them are left out."""

    rows: tuple[TreeRow, ...]
    lanes: int
    left_out: int


def arrange(
    nodes: Sequence[N], key: Callable[[N], Hashable], parent: Callable[[N], Hashable]
) -> tuple[list[N], dict[Hashable, list[N]]]:
    """Return the roots, and the children of each key; a node is a root if its parent is not among the nodes."""
    keys = {key(node) for node in nodes}
    roots: list[N] = []
    children: dict[Hashable, list[N]] = {}
    for node in nodes:
        if parent(node) in keys:
            children.setdefault(parent(node), []).append(node)
        else:
            roots.append(node)
    return roots, children


# --- lines with margins -----------------------------------------------------------------------------------------------


def margins(
    nodes: Sequence[N], key: Callable[[N], Hashable], parent: Callable[[N], Hashable]
) -> Iterator[list[tuple[str, N]]]:
    """Yield, for each root, the lines of its tree: a margin and a node.

    A chain of commits stays in its column. If a partition has several children, each gets a branch in the margin.
    """
    roots, children = arrange(nodes, key, parent)
    for root in roots:
        yield list(_lines(root, lambda node: children.get(key(node), [])))


def _lines(root: N, children_of: Callable[[N], list[N]]) -> Iterator[tuple[str, N]]:
    """Yield the lines of a tree: margin and node. Branches that are nested too deeply share the deepest column."""
    waiting = [(root, "", "")]  # a node, its margin, and the margin of the nodes below it
    while waiting:
        node, margin, rest = waiting.pop()
        yield margin, node
        children = children_of(node)
        if len(children) == 1:
            waiting.append((children[0], rest, rest))
            continue
        above = rest[: 3 * (NESTED - 1)]
        for child in reversed(children):
            last = child is children[-1]
            waiting.append((child, above + ("└─ " if last else "├─ "), above + ("   " if last else "│  ")))


# --- rows in lanes ----------------------------------------------------------------------------------------------------


def lay_out(partitions: Sequence[PartitionSummary]) -> PartitionTree:
    """Lay out all partitions of a group, given in the order in which they were opened."""
    stretches = _stretches(partitions)
    shown = stretches[-ROWS:]
    row_of = {each.row: n for n, stretch in enumerate(shown) for each in stretch}
    parents = [None if (above := stretch[0].parent) is None else row_of.get(above) for stretch in shown]
    below: list[list[int]] = [[] for _ in shown]
    for n, parent in enumerate(parents):
        if parent is not None:
            below[parent].append(n)
    lanes = _lanes(shown, parents, below)
    rows = [
        TreeRow(
            stretch[-1],
            lanes[n],
            parents[n],
            folded=len(stretch) if len(stretch) > 1 else 0,
            messages=_messages(stretch),
        )
        for n, stretch in enumerate(shown)
    ]
    return PartitionTree(
        tuple(rows), max(lanes, default=-1) + 1, sum(map(len, stretches[: -len(shown)])) if shown else 0
    )


def _stretches(partitions: Sequence[PartitionSummary]) -> list[_Stretch]:
    """Return the stretches that become rows, parents before children (a follower may store a child first)."""
    roots, children = arrange(range(len(partitions)), lambda n: partitions[n].row, lambda n: partitions[n].parent)
    folding = len(partitions) > UNFOLDED
    found: list[_Stretch] = []
    heapify(roots)
    while roots:
        stretch = [partitions[heappop(roots)]]
        found.append(stretch)
        while len(below := children.get(stretch[-1].row, [])) == 1 and folding:
            following = partitions[below[0]]
            if not _is_like_its_neighbours(following, stretch[-1], partitions, children):
                break
            stretch.append(following)
        if len(stretch) <= FOLD_FROM:
            found[-1:] = [[each] for each in stretch]
        else:
            found[-1:] = [stretch[:1], stretch[1:]]
        for n in below:
            heappush(roots, n)
    return found


def _is_like_its_neighbours(
    each: PartitionSummary,
    before: PartitionSummary,
    partitions: Sequence[PartitionSummary],
    children: Mapping[Hashable, list[int]],
) -> bool:
    """Tell whether a partition may be folded: it is not a tip, has one child, and resembles child and parent."""
    after = children.get(each.row, [])
    if len(after) != 1 or each.held_welcomes or partitions[after[0]].row not in children:
        return False  # the tip and the partition before it are always drawn
    return _look(before) == _look(each) == _look(partitions[after[0]])


def _look(each: PartitionSummary) -> tuple[object, ...]:
    return each.knowledge, each.detached, each.terminated, each.followers


def _messages(stretch: _Stretch) -> int:
    return sum(each.messages for each in stretch)


def _lanes(shown: Sequence[_Stretch], parents: Sequence[int | None], below: Sequence[list[int]]) -> list[int]:
    """Return a lane for each row: the branch with most messages stays in its parent's lane, others get free lanes."""
    carried = [_messages(stretch) for stretch in shown]
    for n in reversed(range(len(shown))):
        if (parent := parents[n]) is not None:
            carried[parent] += carried[n]
    lanes, used = [-1] * len(shown), set[int]()

    def assign_free(n: int) -> None:
        lanes[n] = next(lane for lane in range(len(used) + 1) if lane not in used)
        used.add(lanes[n])

    for n in range(len(shown)):
        if lanes[n] < 0:
            assign_free(n)
        if not below[n]:
            used.discard(lanes[n])
        for place, child in enumerate(sorted(below[n], key=lambda child: (-carried[child], child))):
            if place == 0:
                lanes[child] = lanes[n]
            else:
                assign_free(child)  # used from this row on, because the line to the child begins here
    return lanes
