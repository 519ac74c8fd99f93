"""The Welcomes that are not delivered yet, for the operator: their providers, and since when they wait."""

from __future__ import annotations

import attrs

from mimids.store.engine.transaction import Tx
from mimids.store.welcomes import drop_served
from mimids.values import Milliseconds
from mimids.wire.codec import vector
from mimids.wire.ids import KEY_PACKAGE_REF, GroupId, MaskedPartitionKey, ProviderId

_REFS = vector(KEY_PACKAGE_REF)


@attrs.frozen
class WaitingWelcome:
    """A Welcome that is held, due or offered to one provider."""

    id: int
    group_id: GroupId
    partition: MaskedPartitionKey  # the partition to which its commit leads
    provider: ProviderId
    references: int  # KeyPackages of that provider's users
    state: str
    octets: int  # octets of the whole Welcome
    created_at: Milliseconds
    failures: int  # in a row
    next_attempt_at: Milliseconds
    reason: str | None  # the code of the last failure


def waiting(tx: Tx, *, limit: int, provider: ProviderId | None = None) -> list[WaitingWelcome]:
    """Return up to `limit` Welcomes that are not delivered, the oldest first.

    With `provider`, only Welcomes to this provider.
    """
    rows = tx.all(
        "SELECT o.id, g.group_id, p.masked_key, t.domain, o.refs, o.state, length(w.body), o.created_at, o.failures,"
        " o.next_attempt_at, o.outcome FROM outgoing_welcomes o JOIN partitions p ON p.id = o.partition"
        " JOIN groups g ON g.id = p.group_ref JOIN providers t ON t.id = o.provider"
        " JOIN welcomes w ON w.id = o.welcome"
        " WHERE o.state IN ('held', 'due', 'offered') AND (CAST(?1 AS TEXT) IS NULL OR t.domain = ?1)"
        " ORDER BY o.id LIMIT ?2",
        (provider, limit),
    )
    return [
        WaitingWelcome(id_, group_id, key, domain, len(_REFS.decode(refs)), *others)
        for id_, group_id, key, domain, refs, *others in rows
    ]


def drop(tx: Tx, row: int) -> bool:
    """Cancel a Welcome that is not delivered; return False if no such Welcome has this number.

    A sender who asks for the Welcome's status sees it as cancelled, and may send it again.
    """
    found = tx.one(
        "SELECT welcome, partition, state FROM outgoing_welcomes WHERE id = ? AND state IN ('held', 'due', 'offered')",
        (row,),
    )
    if found is None:
        return False
    welcome, partition, state = found
    tx.execute("UPDATE outgoing_welcomes SET state = 'cancelled', sender = 0 WHERE id = ?", (row,))
    if state == "held":
        tx.execute("UPDATE partitions SET held_welcomes = held_welcomes - 1 WHERE id = ?", (partition,))
    drop_served(tx, [welcome])
    return True
