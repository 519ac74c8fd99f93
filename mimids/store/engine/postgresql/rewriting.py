"""Rewriting rows, so that PostgreSQL itself does not show with which other rows they were written.

PostgreSQL stores with each row the number of the transaction that wrote the row last (`xmin`), and a row that is
written goes to another place in the file (`ctid`). A claim writes a bearer token and a KeyPackage in one transaction,
and so does the arrival of the Welcome. So these columns would connect the two, although the columns of the schema do
not (docs/privacy.md). If the tokens that were written lately are written once more, in the order of their ids, the
columns say only that. The tokens with ids near theirs are written too, a block of ids in each transaction: otherwise
the columns would show in which run a token was rewritten, and so in which order tokens were used.

The old versions of the rows stay in the file until PostgreSQL's next vacuum.
"""

from __future__ import annotations

from typing import Final

from mimids.store.engine.token_places import BLOCK_ROWS
from mimids.store.engine.transaction import Tx

FIRST_TRANSACTION: Final = "2"  # older than all others: PostgreSQL numbers them from 3

_WRITTEN_SINCE: Final = (
    "SELECT id FROM tokens WHERE id >= ?1 AND age(xmin) <= age(CAST(CAST(?2 AS text) AS xid))"
    " AND CAST(xmin AS text) <> ALL (string_to_array(?3, ',')) ORDER BY id LIMIT 1"
)
_THIS_TRANSACTION: Final = "SELECT CAST(CAST(pg_current_xact_id() AS xid) AS text)"


class TokenRewriting:
    """Rewrites blocks of tokens, and remembers which transactions did it: their rows are not rewritten again."""

    def __init__(self) -> None:
        self._since = FIRST_TRANSACTION  # the first transaction of the last run: later ones have to be looked at
        self._own: list[str] = []  # the transactions of the last run
        self._running: list[str] = []  # those of the run that goes on
        self._next = 0  # the first id after the last block

    def rewrite_block(self, tx: Tx) -> bool:
        """Rewrite the next block that has tokens to rewrite; return False if there is none. Needs to run alone."""
        found = tx.one(_WRITTEN_SINCE, (self._next, self._since, ",".join(self._own)))
        end = None if found is None else (found[0] // BLOCK_ROWS + 1) * BLOCK_ROWS
        if end is not None:
            ids = tx.all("SELECT id FROM tokens WHERE id >= ? AND id < ? ORDER BY id", (end - BLOCK_ROWS, end))
            tx.executemany("UPDATE tokens SET id = id WHERE id = ?", ids)
        this = tx.all(_THIS_TRANSACTION)[0][0]
        tx.after_commit(lambda: self._note(str(this), end))
        return end is not None

    def _note(self, transaction: str, end: int | None) -> None:
        """Record that a block is committed, which ends before id `end`; None ends the run."""
        self._running.append(transaction)
        if end is not None:
            self._next = end
            return
        self._since, self._own, self._running, self._next = self._running[0], self._running, [], 0
