"""The layout of a group's partitions: lanes for the console, margins for the command line."""

from __future__ import annotations

from operator import attrgetter

from hypothesis import given

from mimids.ds.groups.tree_layout import NESTED, ROWS, PartitionTree, lay_out, margins
from mimids.store.overview import PartitionSummary
from tests.support.summaries import histories, summary


def drawn(laid: PartitionTree) -> list[tuple[int, int, int | None]]:
    """Return for each row its partition, its lane, and the row of its parent."""
    return [(row.partition.row, row.lane, row.parent) for row in laid.rows]


def test_the_branch_with_most_messages_keeps_its_parent_s_lane() -> None:
    laid = lay_out([summary(1, None), summary(2, 1, 1), summary(3, 1, 5), summary(4, 2), summary(5, 3)])
    assert drawn(laid) == [(1, 0, None), (2, 1, 0), (3, 0, 0), (4, 1, 1), (5, 0, 2)]
    assert laid.lanes == 2


def test_a_lane_is_used_again_once_its_branch_has_ended() -> None:
    laid = lay_out([summary(1, None), summary(2, 1, 0), summary(3, 1), summary(4, 3, 0), summary(5, 3)])
    assert [row.lane for row in laid.rows] == [0, 1, 0, 1, 0]


def test_partitions_without_a_known_parent_are_roots_and_parents_come_first() -> None:
    laid = lay_out([summary(7, 6), summary(2, 1), summary(1, None), summary(9, None, detached=True)])
    assert drawn(laid) == [(7, 0, None), (1, 0, None), (2, 0, 1), (9, 0, None)]


def test_a_long_stretch_is_folded_except_for_unusual_partitions_and_the_tip() -> None:
    chain = [summary(1, None), *(summary(n, n - 1) for n in range(2, 51))]
    chain[20] = summary(21, 20, held_welcomes=1)
    rows = lay_out(chain).rows
    assert [(row.partition.row, row.folded, row.messages) for row in rows] == [
        (1, 0, 1),
        (20, 19, 19),
        (21, 0, 1),
        (48, 27, 27),
        (49, 0, 1),
        (50, 0, 1),
    ]
    assert [row.parent for row in rows] == [None, 0, 1, 2, 3, 4]


def test_only_the_newest_of_very_many_partitions_are_drawn() -> None:
    children = [summary(n, 1, n % 2) for n in range(2, 1002)]
    laid = lay_out([summary(1, None), *children])
    assert len(laid.rows) == ROWS
    assert laid.left_out == 1001 - ROWS
    assert laid.rows[-1].partition.row == 1001


@given(histories())
def test_every_partition_is_drawn_once_and_no_line_runs_through_another_node(
    partitions: list[PartitionSummary],
) -> None:
    laid = lay_out(partitions)
    assert sum(row.folded or 1 for row in laid.rows) == len(partitions)
    for n, row in enumerate(laid.rows):
        if row.parent is not None:
            assert row.parent < n
            between = laid.rows[row.parent + 1 : n]
            assert all(each.lane != row.lane for each in between)


@given(histories())
def test_margins_show_every_partition_once(partitions: list[PartitionSummary]) -> None:
    trees = list(margins(partitions, attrgetter("row"), attrgetter("parent")))
    assert sorted(each.row for tree in trees for _, each in tree) == sorted(each.row for each in partitions)
    assert all(tree[0][0] == "" for tree in trees), "a root begins in the first column"


def test_deeply_nested_forks_are_drawn_in_linear_space() -> None:
    nodes = [summary(1, None)]
    for row in range(2, 4000, 2):
        nodes += [summary(row, nodes[-1].row), summary(row + 1, nodes[-1].row)]
    (tree,) = margins(nodes, attrgetter("row"), attrgetter("parent"))
    assert [each.row for _, each in tree][:3] == [1, 2, 3]
    assert len(tree) == len(nodes)
    assert max(len(margin) for margin, _ in tree) == 3 * NESTED
