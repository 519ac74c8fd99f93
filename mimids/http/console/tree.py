"""A group's partitions as a drawing: time runs downwards, and each branch of a fork has a lane of its own.

A line leads to each partition from the one in which a commit opened it. Long stretches without a fork are folded into
one row, and only the newest rows are drawn, so a group of years still fits on a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import Final

import attrs

from mimids.http.console.markup import Markup, element
from mimids.store.overview import PartitionSummary

UNFOLDED: Final = 30  # partitions; a smaller group is drawn without folding
FOLD_FROM: Final = 3  # the longest stretch that is not folded into one row
ROWS: Final = 300  # drawn at most, the newest ones

ROW_PIXELS: Final = 34  # the same as in the style sheet, for the table beside the drawing
LANE_PIXELS: Final = 22
MARGIN_PIXELS: Final = 18
RADIUS: Final = 6
COLOURS: Final = 6  # of lanes, the same as in the style sheet

_Stretch = list[PartitionSummary]  # one row: a partition, or a chain of partitions folded together


@attrs.frozen
class TreeRow:
    """A row of the drawing: one partition, or a chain of `folded` partitions of which this is the last."""

    partition: PartitionSummary
    lane: int
    parent: int | None  # the index of an earlier row
    folded: int  # 0: a single partition
    messages: int
    forks: bool  # a live fork: more than one branch below carries messages


@attrs.frozen
class PartitionTree:
    """The rows of a drawing, and the number of older partitions that it leaves out."""

    rows: tuple[TreeRow, ...]
    lanes: int
    left_out: int


def lay_out(partitions: Sequence[PartitionSummary]) -> PartitionTree:
    """Assign rows and lanes to all partitions of a group, given in the order in which they were opened."""
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
            forks=sum(shown[each][0].messages > 0 and not shown[each][0].terminated for each in below[n]) > 1,
        )
        for n, stretch in enumerate(shown)
    ]
    return PartitionTree(
        tuple(rows), max(lanes, default=-1) + 1, sum(map(len, stretches[: -len(shown)])) if shown else 0
    )


def _stretches(partitions: Sequence[PartitionSummary]) -> list[_Stretch]:
    """Return the rows, parents before children; a follower may have learned of a parent later than of its child."""
    rank = {each.row: n for n, each in enumerate(partitions)}
    children: dict[int, list[int]] = {}
    roots = []
    for n, each in enumerate(partitions):
        if each.parent in rank:
            children.setdefault(each.parent, []).append(n)
        else:
            roots.append(n)
    folding = len(partitions) > UNFOLDED

    def is_quiet(each: PartitionSummary, before: PartitionSummary) -> bool:
        """Tell whether a partition can be folded: it has one child, and looks like that one and like `before`."""
        after = children.get(each.row, [])
        if len(after) != 1 or each.held_welcomes or partitions[after[0]].row not in children:
            return False  # the tip and its parent are always shown
        return _look(before) == _look(each) == _look(partitions[after[0]])

    found: list[_Stretch] = []
    heapify(roots)
    while roots:
        stretch = [partitions[heappop(roots)]]
        found.append(stretch)
        while len(below := children.get(stretch[-1].row, [])) == 1 and folding:
            following = partitions[below[0]]
            if not is_quiet(following, stretch[-1]):
                break
            stretch.append(following)
        if len(stretch) <= FOLD_FROM:
            found[-1:] = [[each] for each in stretch]
        else:
            found[-1:] = [stretch[:1], stretch[1:]]
        for n in below:
            heappush(roots, n)
    return found


def _look(each: PartitionSummary) -> tuple[object, ...]:
    return each.knowledge, each.detached, each.terminated, each.followers


def _messages(stretch: _Stretch) -> int:
    return sum(each.messages for each in stretch)


def _lanes(shown: Sequence[_Stretch], parents: Sequence[int | None], below: Sequence[list[int]]) -> list[int]:
    """Return a lane for each row. The child whose branch carries most messages continues its parent's lane."""
    carried = [_messages(stretch) for stretch in shown]
    for n in reversed(range(len(shown))):
        if (parent := parents[n]) is not None:
            carried[parent] += carried[n]
    lanes, taken = [-1] * len(shown), set[int]()

    def assign(n: int) -> None:
        lanes[n] = next(lane for lane in range(len(taken) + 1) if lane not in taken)
        taken.add(lanes[n])

    for n in range(len(shown)):
        if lanes[n] < 0:
            assign(n)
        if not below[n]:
            taken.discard(lanes[n])
        for place, child in enumerate(sorted(below[n], key=lambda child: (-carried[child], child))):
            if place == 0:
                lanes[child] = lanes[n]
            else:
                assign(child)  # from this row on, because its line changes lanes at once
    return lanes


def draw(tree: PartitionTree) -> Markup:
    """Return the drawing as SVG, ROW_PIXELS high for each row, to be shown beside a table of the rows."""
    width, height = 2 * MARGIN_PIXELS + LANE_PIXELS * (tree.lanes - 1), ROW_PIXELS * len(tree.rows)
    return element(
        "svg",
        element("title", f"{len(tree.rows)} rows of partitions, {tree.lanes} side by side at most"),
        [_line(tree.rows, n, parent) for n, row in enumerate(tree.rows) if (parent := row.parent) is not None],
        [_node(row, n) for n, row in enumerate(tree.rows)],
        xmlns="http://www.w3.org/2000/svg",
        role="img",
        width=width,
        height=height,
        viewBox=f"0 0 {width} {height}",
    )


def _place(lane: int, n: int) -> tuple[int, int]:
    return MARGIN_PIXELS + LANE_PIXELS * lane, ROW_PIXELS * n + ROW_PIXELS // 2


def _line(rows: Sequence[TreeRow], n: int, parent: int) -> Markup:
    """Draw the line from the parent's row: first sideways to the lane, then down."""
    (x0, y0), (x1, y1) = _place(rows[parent].lane, parent), _place(rows[n].lane, n)
    over = "" if x0 == x1 else f"C{x0} {y0 + ROW_PIXELS * 3 // 4} {x1} {y0 + ROW_PIXELS // 4} {x1} {y0 + ROW_PIXELS}"
    return element("path", d=f"M{x0} {y0}{over}V{y1}", class_=f"line {_classes(rows[n])}")


def _node(row: TreeRow, n: int) -> Markup:
    x, y = _place(row.lane, n)
    classes = f"node {_classes(row)} {row.partition.knowledge}"
    if row.folded:
        gap = element("rect", x=x - 3, y=y - 11, width=6, height=22)
        return element(
            "g", gap, [element("circle", cx=x, cy=y + dy, r=2) for dy in (-6, 0, 6)], class_=f"fold {classes}"
        )
    fork = element("circle", cx=x, cy=y, r=RADIUS + 4, class_="fork") if row.forks else None
    core = element("circle", cx=x, cy=y, r=RADIUS // 2, class_="core") if row.partition.knowledge == "claimed" else None
    cross = element("path", d=f"M{x - 3} {y - 3}l6 6m0 -6l-6 6", class_="cross") if row.partition.terminated else None
    return element("g", fork, element("circle", cx=x, cy=y, r=RADIUS), core, cross, class_=classes)


def _classes(row: TreeRow) -> str:
    ended = " terminated" if row.partition.terminated else ""
    return f"lane{row.lane % COLOURS}{ended}{' detached' if row.partition.detached else ''}"
