"""Partitions as the console and the command line get them, made by hand."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from mimids.store.overview import PartitionSummary
from mimids.values import Milliseconds
from mimids.wire.ids import MaskedPartitionKey


def summary(row: int, parent: int | None, messages: int = 1, **other: Any) -> PartitionSummary:
    """Return a partition with a plain state; `other` are fields that differ from it."""
    plain: dict[str, Any] = {
        "knowledge": "derived",
        "detached": False,
        "terminated": False,
        "held_welcomes": 0,
        "followers": (),
    }
    return PartitionSummary(
        row=row,
        masked_key=MaskedPartitionKey(row.to_bytes(32, "big")),
        parent=parent,
        epoch=row,
        messages=messages,
        terminated_reason=None,
        has_group_info=False,
        opened_at=Milliseconds(row),
        **(plain | other),
    )


@st.composite
def histories(draw: st.DrawFn) -> list[PartitionSummary]:
    """Draw the partitions of a group with forks, ended branches and missing parents, in any order."""
    choices = draw(st.lists(st.integers(0, 10**6), max_size=80))
    summaries = [
        summary(
            n,
            None if not n or choice % 17 == 0 else choice % n,
            choice % 3,
            terminated=choice % 5 == 0,
            live_fork=choice % 7 == 0,
        )
        for n, choice in enumerate(choices)
    ]
    return draw(st.permutations(summaries))
