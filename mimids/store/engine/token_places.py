"""Rewriting tokens, so that SQLite's file does not show in which order bearer tokens were used.

A row that has grown gets another place in its page, and a claim makes the row of its token grow. So the places of the
tokens would show in which order they were used. KeyPackages are numbered by their claims, so the two orders would
connect each token with the KeyPackage that was claimed with it, although the columns do not (docs/privacy.md).

If all tokens of a block of ids are written once more, one after the other, their places show only their ids. A block
is always rewritten as a whole: otherwise the rewritten rows would show in which sweep they were used.
"""

from __future__ import annotations

from typing import Final

from mimids.store.engine.transaction import Tx

BLOCK_ROWS: Final = 256  # written in one transaction


def watch(tx: Tx) -> None:
    """Note from now on, for this connection, which blocks have tokens that were written."""
    if tx.one("SELECT 1 FROM sqlite_temp_schema WHERE name = 'used_blocks'") is not None:
        return
    tx.execute("CREATE TEMP TABLE used_blocks (block INTEGER PRIMARY KEY)")
    # What was written before this connection was opened is not known.
    tx.execute("INSERT INTO used_blocks SELECT DISTINCT id / ? FROM tokens", (BLOCK_ROWS,))
    tx.execute(
        "CREATE TEMP TRIGGER note_used_block AFTER UPDATE OF uses_left, rate_started_at, rate_used, abuse_started_at,"
        " unanswered_claims, warned_at, state, ended_at, issuer_device ON main.tokens"
        f" BEGIN INSERT OR IGNORE INTO used_blocks VALUES (new.id / {BLOCK_ROWS}); END"
    )


def rewrite_block(tx: Tx, after: int) -> int | None:
    """Rewrite the next block after block `after` that has used tokens; return its number, None if there is none."""
    found = tx.one("SELECT min(block) FROM used_blocks WHERE block > ?", (after,))
    if found is None or found[0] is None:
        return None
    block = int(found[0])
    tx.execute("DELETE FROM used_blocks WHERE block = ?", (block,))
    _rewrite(tx, block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS)
    return block


def rewrite_all(tx: Tx) -> None:
    """Rewrite all tokens of a database that nothing else uses."""
    (last,) = tx.one("SELECT coalesce(max(id), 0) FROM tokens") or (0,)
    _rewrite(tx, 0, last + 1)


def _rewrite(tx: Tx, first: int, end: int) -> None:
    """Move the tokens with these ids to the other end of the table, and back in the order of their ids."""
    tx.execute("UPDATE tokens SET id = -id WHERE id >= ? AND id < ?", (first, end))
    tx.execute("UPDATE tokens SET id = -id WHERE id < 0")
