"""The drawing of a group's partitions: a line leads to each partition from the one in which a commit opened it.

Only places and shapes are computed here; the template `drawing.html` writes them as SVG.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

from mimids.ds.groups.tree_layout import PartitionTree, TreeRow
from mimids.store.overview import PartitionSummary

COLOURS: Final = 6  # colours of lanes; the style sheet has as many


@attrs.frozen
class Scale:
    """The distances of a drawing, in pixels.

    A row must be as high as the style sheet makes a row of the table beside the drawing.
    """

    row: int
    lane: int
    margin: int = 18


WIDE: Final = Scale(row=34, lane=22)
NARROW: Final = Scale(row=148, lane=14, margin=14)  # on a small screen each row of the table is a card


@attrs.frozen
class DrawnLine:
    """The line to a partition from its parent, as the path of an SVG."""

    path: str
    classes: str


@attrs.frozen
class DrawnNode:
    """A partition, or a stretch of `folded` ones."""

    x: int
    y: int
    classes: str
    folded: bool = False
    fork: bool = False  # a ring around it
    core: bool = False  # a dot in it
    cross: bool = False


@attrs.frozen
class Drawing:
    """A whole drawing, with its size in pixels."""

    title: str
    width: int
    height: int
    lines: Sequence[DrawnLine]
    nodes: Sequence[DrawnNode]


def draw(tree: PartitionTree, scale: Scale) -> Drawing:
    """Return the drawing of a tree; `Scale.row` pixels high for each row."""
    rows = tree.rows
    return Drawing(
        f"{len(rows)} rows of partitions, {tree.lanes} side by side at most",
        2 * scale.margin + scale.lane * (tree.lanes - 1),
        scale.row * len(rows),
        [_line(rows, n, parent, scale) for n, row in enumerate(rows) if (parent := row.parent) is not None],
        [_node(row, n, scale) for n, row in enumerate(rows)],
    )


def sample(kind: str) -> DrawnNode:
    """Return a dot for the legend, of one kind: a state, or "fork", "terminated", "detached"."""
    classes = f"lane0 {kind if kind in ('claimed', 'unknown', 'terminated', 'detached') else 'derived'}"
    return DrawnNode(12, 12, classes, fork=kind == "fork", core=kind == "claimed", cross=kind == "terminated")


def _place(lane: int, n: int, scale: Scale) -> tuple[int, int]:
    return scale.margin + scale.lane * lane, scale.row * n + WIDE.row // 2


def _line(rows: Sequence[TreeRow], n: int, parent: int, scale: Scale) -> DrawnLine:
    """Draw the line from the parent's row: first sideways to the lane, then down."""
    (x0, y0), (x1, y1) = _place(rows[parent].lane, parent, scale), _place(rows[n].lane, n, scale)
    bend = WIDE.row
    over = "" if x0 == x1 else f"C{x0} {y0 + bend * 3 // 4} {x1} {y0 + bend // 4} {x1} {y0 + bend}"
    return DrawnLine(f"M{x0} {y0}{over}V{y1}", _classes(rows[n].lane, rows[n].partition))


def _node(row: TreeRow, n: int, scale: Scale) -> DrawnNode:
    x, y = _place(row.lane, n, scale)
    partition = row.partition
    classes = f"{_classes(row.lane, partition)} {partition.knowledge}"
    if row.folded:
        return DrawnNode(x, y, f"fold {classes}", folded=True)
    return DrawnNode(
        x,
        y,
        classes,
        fork=partition.live_fork,
        core=partition.knowledge == "claimed",
        cross=partition.terminated,
    )


def _classes(lane: int, partition: PartitionSummary) -> str:
    ended = " terminated" if partition.terminated else ""
    return f"lane{lane % COLOURS}{ended}{' detached' if partition.detached else ''}"
