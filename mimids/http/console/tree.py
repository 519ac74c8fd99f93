"""A group's partitions as an SVG drawing: a line leads to each partition from the one in which a commit opened it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mimids.ds.groups.tree_layout import PartitionTree, TreeRow
from mimids.http.console.markup import Markup, element

ROW_PIXELS: Final = 34  # the same as in the style sheet, for the table beside the drawing
LANE_PIXELS: Final = 22
MARGIN_PIXELS: Final = 18
RADIUS: Final = 6
COLOURS: Final = 6  # of lanes, the same as in the style sheet


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
    fork = element("circle", cx=x, cy=y, r=RADIUS + 4, class_="fork") if row.partition.live_fork else None
    core = element("circle", cx=x, cy=y, r=RADIUS // 2, class_="core") if row.partition.knowledge == "claimed" else None
    cross = element("path", d=f"M{x - 3} {y - 3}l6 6m0 -6l-6 6", class_="cross") if row.partition.terminated else None
    return element("g", fork, element("circle", cx=x, cy=y, r=RADIUS), core, cross, class_=classes)


def _classes(row: TreeRow) -> str:
    ended = " terminated" if row.partition.terminated else ""
    return f"lane{row.lane % COLOURS}{ended}{' detached' if row.partition.detached else ''}"
