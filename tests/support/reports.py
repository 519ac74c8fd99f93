"""Reports for tests."""

from __future__ import annotations

from mimids.ds.terms.report import Report
from mimids.wire.ids import GroupId, ProviderId

GROUP = GroupId(b"mimi://a.example/g/1")


def report(*evidence: bytes, note: str = "", kind: str = "spam", accused: str = "mimi://c.example/u/carol") -> Report:
    """Return a report on a user, about a group of a.example."""
    return Report(ProviderId("a.example"), GROUP, accused, kind, note, evidence)
