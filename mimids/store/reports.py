"""Reports of abuse by a hub, a follower or a user, with their evidence and their state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import DAY_MILLISECONDS, DeviceRow, Milliseconds
from mimids.wire.codec import OPAQUE_V, vector
from mimids.wire.ids import GroupId, ProviderId, UserId

REFERENCE_OCTETS = 6  # every JSON parser keeps a number of 48 bits exactly
_EVIDENCE = vector(OPAQUE_V)


@attrs.frozen
class NewReport:
    """A report to store. The reporter is `device` or `provider`; if both are None, this server is the reporter."""

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
    digest: bytes


def reference_of(digest: bytes) -> int:
    """Return the number by which the reporter knows a report. It does not reveal how many reports there are."""
    return int.from_bytes(digest[:REFERENCE_OCTETS], "big")


def has_digest(tx: Tx, digest: bytes) -> bool:
    """Return whether there is a report with this digest: by the same reporter, with the same content."""
    return tx.one("SELECT 1 FROM reports WHERE digest = ?", (digest,)) is not None


def add(tx: Tx, report: NewReport, now: Milliseconds) -> int:
    """Store a report; a report without evidence counts as replayed."""
    return tx.insert(
        "INSERT INTO reports (digest, reporter_device, reporter_provider, hub, group_id, accused, kind, note, evidence,"
        " received_at, replayed_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
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
            None if report.evidence else now,
        ),
    )


def count_of_day(tx: Tx, device: DeviceRow | None, provider: int | None, now: Milliseconds) -> int:
    """Count one reporter's reports of the last day; if `device` and `provider` are None, this server is the reporter.

    Reports from later than a day after `now` are not counted: the clock was ahead when they came.
    """
    row = tx.one(
        "SELECT count(*) FROM reports WHERE reporter_device IS NOT DISTINCT FROM ?"
        " AND reporter_provider IS NOT DISTINCT FROM ? AND received_at > ? AND received_at <= ?",
        (device, provider, now - DAY_MILLISECONDS, now + DAY_MILLISECONDS),
    )
    return int(row[0]) if row else 0


_COLUMNS = (
    "r.id, r.reporter_device IS NOT NULL, u.user_id, o.domain, r.hub, r.group_id, r.accused, r.kind, r.note,"
    " r.evidence, r.received_at, r.replayed_at, r.findings, r.passed_on_at, r.passed_on_to, r.closed_at, r.outcome,"
    " r.digest"
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
    """Return one report, given by its row or by its reporter's reference; None if there is none."""
    row = tx.one(f"{_JOINED} WHERE r.id = ?", (report,))
    if row is None and 0 <= report < 1 << 8 * REFERENCE_OCTETS:
        first = report.to_bytes(REFERENCE_OCTETS, "big")
        row = tx.one(f"{_JOINED} WHERE r.digest >= ? AND r.digest < ?", (first, first + b"\xff" * 33))
    return None if row is None else _report(row)


def newest(tx: Tx, *, closed: bool, limit: int) -> list[StoredReport]:
    """Return the newest reports; include closed reports if `closed` is true."""
    if closed:
        rows = tx.all(f"{_JOINED} ORDER BY r.id DESC LIMIT ?", (limit,))
    else:
        rows = tx.all(f"{_JOINED} WHERE r.closed_at IS NULL ORDER BY r.id DESC LIMIT ?", (limit,))
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
    """Return the next report after `after` that is marked to be passed on and has not been passed on yet."""
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


def drop_older(tx: Tx, before: Milliseconds, *, limit: int = 100) -> int:
    """Delete up to `limit` reports received before `before`; return how many."""
    return tx.execute(
        "DELETE FROM reports WHERE id IN (SELECT id FROM reports WHERE received_at < ? LIMIT ?)", (before, limit)
    )
