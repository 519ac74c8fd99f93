"""The audit table: commands that operators ran. Entries are never changed; retention deletes old entries."""

from __future__ import annotations

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds


@attrs.frozen
class AuditEntry:
    """One command that an operator ran; `arguments` is a JSON object without secrets."""

    id: int
    at: Milliseconds
    actor: str  # "shell UID", "socket UID" or "console SESSION"
    command: str
    arguments: str


def record(tx: Tx, at: Milliseconds, actor: str, command: str, arguments: str) -> None:
    """Add an entry; call it in the transaction of the command, or directly after a command that writes no rows."""
    tx.execute("INSERT INTO audit (at, actor, command, arguments) VALUES (?, ?, ?, ?)", (at, actor, command, arguments))


def newest(tx: Tx, limit: int, before: int | None = None) -> list[AuditEntry]:
    """Return the newest entries, the newest first; with `before`, only entries with a lower id."""
    rows = tx.all(
        "SELECT id, at, actor, command, arguments FROM audit WHERE id < ? ORDER BY id DESC LIMIT ?",
        ((1 << 63) - 1 if before is None else before, limit),
    )
    return [AuditEntry(*row) for row in rows]


def drop_older(tx: Tx, before: Milliseconds, *, limit: int) -> int:
    """Delete up to `limit` entries from before this time; return how many."""
    tx.execute("UPDATE audit_kept SET since = ? WHERE id = 1", (before,))  # the table refuses to delete newer entries
    return tx.execute("DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE at < ? LIMIT ?)", (before, limit))
