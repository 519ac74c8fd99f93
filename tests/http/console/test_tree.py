"""The drawing of a group's partitions."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from hypothesis import given

from mimids.ds.groups.tree_layout import lay_out
from mimids.http.console import rendering, tree
from mimids.http.console.tree import NARROW, WIDE, draw
from mimids.store.overview import PartitionSummary
from tests.support.summaries import histories, summary

STYLE = rendering.STATIC["console.css"].decode()


def written(drawing: tree.Drawing) -> str:
    return str(rendering.TEMPLATES.get_template("drawing.html").module.tree(drawing, 0))  # type: ignore[attr-defined]


@given(histories())
def test_every_drawing_is_xml_and_as_high_as_its_rows(partitions: list[PartitionSummary]) -> None:
    laid_out = lay_out(partitions)
    for scale in (WIDE, NARROW):
        found = ET.fromstring(written(draw(laid_out, scale)))  # noqa: S314  # our own output is no threat
        assert found.attrib["height"] == str(scale.row * len(laid_out.rows))
        assert len(found.findall("{*}g")) == len(laid_out.rows)


def test_a_live_fork_has_a_ring_around_it() -> None:
    children = [summary(2, 1), summary(3, 1)]
    assert 'class="fork"' in written(draw(lay_out([summary(1, None, live_fork=True), *children]), WIDE))
    assert 'class="fork"' not in written(draw(lay_out([summary(1, None), *children]), WIDE))


def test_the_style_sheet_knows_the_drawing() -> None:
    assert f"height: {WIDE.row}px" in STYLE
    assert f"height: {NARROW.row}px" in STYLE
    assert all(f".lane{n} " in STYLE for n in range(tree.COLOURS))
