"""Rewriting rows, so that PostgreSQL itself does not show with which other rows they were written.

PostgreSQL stores with each row the number of the transaction that wrote the row last (`xmin`), and a row that is
written goes to another place in the file (`ctid`). A claim writes a bearer token and a KeyPackage in one transaction,
and so does the arrival of the Welcome. So these columns would connect the two, although the columns of the schema do
not (docs/privacy.md). If the tokens that were written lately are written once more, in the order of their ids, the
columns say only that.

The old versions of the rows stay in the file until PostgreSQL's next vacuum.
"""

from __future__ import annotations

from typing import Final

from mimids.store.engine.transaction import Tx

REWRITTEN_AT_ONCE: Final = 500  # rows in one transaction
FIRST_TRANSACTION: Final = "2"  # older than all others: PostgreSQL numbers them from 3

_WRITTEN_SINCE: Final = (
    "SELECT id FROM tokens WHERE id > ?1 AND age(xmin) <= age(CAST(CAST(?2 AS text) AS xid))"
    " AND CAST(xmin AS text) <> ALL (string_to_array(?3, ',')) ORDER BY id LIMIT ?4"
)
_THIS_TRANSACTION: Final = "SELECT CAST(CAST(pg_current_xact_id() AS xid) AS text)"


class TokenRewriting:
    """Rewrites tokens page by page, and remembers which transactions did it: their rows are not rewritten again."""

    def __init__(self) -> None:
        self._since = FIRST_TRANSACTION  # the first transaction of the last run: later ones have to be looked at
        self._own: list[str] = []  # the transactions of the last run
        self._running: list[str] = []  # those of the run that goes on
        self._after = 0  # the last id of the last page

    def rewrite_page(self, tx: Tx) -> bool:
        """Rewrite up to `REWRITTEN_AT_ONCE` tokens; return False once all are rewritten. Needs to run alone."""
        if not self._running:
            self._after = 0
        values = (self._after, self._since, ",".join(self._own), REWRITTEN_AT_ONCE)
        rows = tx.all(_WRITTEN_SINCE, values)
        tx.executemany("UPDATE tokens SET id = id WHERE id = ?", rows)
        this = tx.all(_THIS_TRANSACTION)[0][0]
        tx.after_commit(lambda: self._note(str(this), [row[0] for row in rows]))
        return len(rows) == REWRITTEN_AT_ONCE

    def _note(self, transaction: str, rows: list[int]) -> None:
        """Record that a page is committed; the last page ends the run."""
        self._running.append(transaction)
        if len(rows) == REWRITTEN_AT_ONCE:
            self._after = rows[-1]
            return
        self._since, self._own, self._running = self._running[0], self._running, []
