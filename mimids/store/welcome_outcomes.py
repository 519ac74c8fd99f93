"""The outcomes of the Welcomes of a commit, by KeyPackage reference."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

import attrs

from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds
from mimids.wire.codec import vector
from mimids.wire.ids import KEY_PACKAGE_REF, KeyPackageRef, ProviderId

NOT_ALLOWED: Final = "provider-not-allowed"  # why an unsendable Welcome was refused

_REFS = vector(KEY_PACKAGE_REF)
_FINISHED: Final = frozenset({"refused", "expired", "cancelled"})


@attrs.frozen
class WelcomeOutcome:
    """References of one Welcome that have the same outcome; `reason` is a code, or None without a reason.

    `provider` and `digest` (SHA-256 of the Welcome) are None for an unsendable Welcome.
    """

    refs: tuple[KeyPackageRef, ...]
    state: str  # as in outgoing_welcomes
    reason: str | None
    provider: ProviderId | None
    digest: bytes | None

    @property
    def undelivered(self) -> bool:
        """Tell whether the Welcome was not delivered and will not be delivered, so that it may be sent again."""
        return self.state in _FINISHED


def outcomes_of(tx: Tx, partition: int) -> list[WelcomeOutcome]:
    """Return the outcomes of the Welcomes that lead to a partition, oldest first, unsendable Welcomes last."""
    sent = tx.all(
        "SELECT o.refs, o.state, o.outcome, p.domain, w.digest FROM outgoing_welcomes o"
        " JOIN welcomes w ON w.id = o.welcome JOIN providers p ON p.id = o.provider"
        " WHERE o.partition = ? ORDER BY o.id",
        (partition,),
    )
    unsent = tx.all("SELECT refs FROM unsendable_welcomes WHERE partition = ? ORDER BY id", (partition,))
    return [
        *(WelcomeOutcome(_REFS.decode(row[0]), *row[1:]) for row in sent),
        *(WelcomeOutcome(_REFS.decode(row[0]), "refused", NOT_ALLOWED, None, None) for row in unsent),
    ]


def add_unsendable(tx: Tx, partition: int, refs: Iterable[KeyPackageRef], now: Milliseconds) -> None:
    """Record references whose Welcome is not sent, because their providers may not be contacted."""
    tx.execute(
        "INSERT INTO unsendable_welcomes (partition, refs, created_at) VALUES (?, ?, ?)",
        (partition, _REFS.encode(tuple(refs)), now),
    )


def split_refused(
    tx: Tx, outgoing: int, accepted: Iterable[KeyPackageRef], refused: Iterable[KeyPackageRef], reason: str
) -> None:
    """Move the references that a provider refused from an undelivered Welcome to a row of their own."""
    changed = tx.execute(
        "UPDATE outgoing_welcomes SET refs = ? WHERE id = ? AND state IN ('due', 'offered')",
        (_REFS.encode(tuple(accepted)), outgoing),
    )
    if changed:
        tx.execute(
            "INSERT INTO outgoing_welcomes (welcome, partition, provider, refs, state, outcome, created_at)"
            " SELECT welcome, partition, provider, ?, 'refused', ?, created_at FROM outgoing_welcomes"
            " WHERE id = ?",
            (_REFS.encode(tuple(refused)), reason, outgoing),
        )


def forget_undelivered(tx: Tx, partition: int, refs: Collection[KeyPackageRef]) -> None:
    """Forget the outcome of references that were not delivered, because a Welcome is sent to them again."""
    for table, condition in (
        ("outgoing_welcomes", "state IN ('refused', 'expired', 'cancelled')"),
        ("unsendable_welcomes", "true"),
    ):
        rows = tx.all(f"SELECT id, refs FROM {table} WHERE partition = ? AND {condition}", (partition,))
        for row, encoded in rows:
            before = _REFS.decode(encoded)
            left = tuple(ref for ref in before if ref not in refs)
            if not left:
                tx.execute(f"DELETE FROM {table} WHERE id = ?", (row,))
            elif len(left) < len(before):
                tx.execute(f"UPDATE {table} SET refs = ? WHERE id = ?", (_REFS.encode(left), row))
