"""Reports of abuse by a hub, a follower or a user, with their evidence and their state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import DeviceRow, Milliseconds
from mimids.wire.codec import OPAQUE_V, vector
from mimids.wire.ids import GroupId, ProviderId, UserId

_EVIDENCE = vector(OPAQUE_V)


@attrs.frozen
class NewReport:
    """A report to store. The reporter is `device` or `provider`; if both are None, it is this server itself."""

    digest: bytes
    device: DeviceRow | None
    provider: int | None
    hub: ProviderId
    group_id: GroupId | None
    accused: str
    kind: str
    note: str
    evidence: Sequence[bytes]


@attrs.frozen
class StoredReport:
    """A report as the operator sees it; `findings` is JSON."""

    id: int
    by_device: int  # 1: by one of our devices; if it was removed, `reporter_user` is None
    reporter_user: UserId | None
    reporter_provider: ProviderId | None
    hub: ProviderId
    group_id: GroupId | None
    accused: str
    kind: str
    note: str
    evidence: tuple[bytes, ...]
    received_at: Milliseconds
    replayed_at: Milliseconds | None
    findings: str
    passed_on_at: Milliseconds | None
    passed_on_to: ProviderId | None
    closed_at: Milliseconds | None
    outcome: str | None


def find_digest(tx: Tx, digest: bytes) -> int | None:
    """Return the report with this digest, and so the same content; None if there is none."""
    row = tx.one("SELECT id FROM reports WHERE digest = ?", (digest,))
    return None if row is None else int(row[0])


def add(tx: Tx, report: NewReport, now: Milliseconds) -> int:
    """Store a report."""
    return tx.insert(
        "INSERT INTO reports (digest, reporter_device, reporter_provider, hub, group_id, accused, kind, note, evidence,"
        " received_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            report.digest,
            report.device,
            report.provider,
            report.hub,
            report.group_id,
            report.accused,
            report.kind,
            report.note,
            _EVIDENCE.encode(tuple(report.evidence)),
            now,
        ),
    )


def count_since(tx: Tx, device: DeviceRow | None, provider: int | None, since: Milliseconds) -> int:
    """Count one reporter's reports since `since`; those of this server itself if both are None."""
    row = tx.one(
        "SELECT count(*) FROM reports WHERE reporter_device IS ? AND reporter_provider IS ? AND received_at > ?",
        (device, provider, since),
    )
    return int(row[0]) if row else 0


_COLUMNS = (
    "r.id, r.reporter_device IS NOT NULL, u.user_id, o.domain, r.hub, r.group_id, r.accused, r.kind, r.note,"
    " r.evidence, r.received_at, r.replayed_at, r.findings, r.passed_on_at, r.passed_on_to, r.closed_at, r.outcome"
)
_JOINED = (
    f"SELECT {_COLUMNS} FROM reports r LEFT JOIN devices d ON d.id = r.reporter_device"
    " LEFT JOIN users u ON u.id = d.owner LEFT JOIN providers o ON o.id = r.reporter_provider"
)


def _report(row: tuple[Any, ...]) -> StoredReport:
    values: list[Any] = [*row]
    values[9] = _EVIDENCE.decode(row[9])
    return StoredReport(*values)


def find(tx: Tx, report: int) -> StoredReport | None:
    """Return one report."""
    row = tx.one(f"{_JOINED} WHERE r.id = ?", (report,))
    return None if row is None else _report(row)


def newest(tx: Tx, *, closed: bool, limit: int) -> list[StoredReport]:
    """Return the newest reports; closed ones only if `closed`."""
    rows = tx.all(f"{_JOINED} WHERE ? OR r.closed_at IS NULL ORDER BY r.id DESC LIMIT ?", (closed, limit))
    return [_report(row) for row in rows]


def count_open(tx: Tx) -> int:
    """Count the open reports."""
    row = tx.one("SELECT count(*) FROM reports WHERE closed_at IS NULL")
    return int(row[0]) if row else 0


def next_to_replay(tx: Tx) -> StoredReport | None:
    """Return the oldest report whose evidence was not examined yet."""
    row = tx.one(f"{_JOINED} WHERE r.replayed_at IS NULL ORDER BY r.id LIMIT 1")
    return None if row is None else _report(row)


def note_replayed(tx: Tx, report: int, findings: str, now: Milliseconds) -> None:
    """Store the findings on a report's evidence."""
    tx.execute("UPDATE reports SET findings = ?, replayed_at = ? WHERE id = ?", (findings, now, report))


def pass_on(tx: Tx, report: int, to: ProviderId) -> None:
    """Mark a report to be passed on to another provider."""
    tx.execute("UPDATE reports SET passed_on_to = ?, passed_on_at = NULL WHERE id = ?", (to, report))


def next_to_pass_on(tx: Tx, after: int) -> StoredReport | None:
    """Return the next report after `after` that is marked to be passed on and was not yet."""
    row = tx.one(
        f"{_JOINED} WHERE r.passed_on_to IS NOT NULL AND r.passed_on_at IS NULL AND r.id > ? ORDER BY r.id LIMIT 1",
        (after,),
    )
    return None if row is None else _report(row)


def note_passed_on(tx: Tx, report: int, now: Milliseconds) -> None:
    """Record that the other provider received a report."""
    tx.execute("UPDATE reports SET passed_on_at = ? WHERE id = ?", (now, report))


def close(tx: Tx, report: int, outcome: str, now: Milliseconds) -> None:
    """Close a report."""
    tx.execute("UPDATE reports SET closed_at = ?, outcome = ? WHERE id = ?", (now, outcome, report))


def drop_older(tx: Tx, before: Milliseconds) -> None:
    """Delete reports received before `before`."""
    tx.execute("DELETE FROM reports WHERE received_at < ?", (before,))
