"""Decisions on other providers that the operator made while the server ran; they override the configuration."""

from __future__ import annotations

from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds
from mimids.wire.ids import ProviderId


def every_rule(tx: Tx) -> dict[ProviderId, bool]:
    """Return, for each provider on which the operator has decided, whether that provider is allowed."""
    return {ProviderId(row[0]): bool(row[1]) for row in tx.all("SELECT domain, allowed FROM federation_rules")}


def put_rule(tx: Tx, domain: ProviderId, *, allowed: bool, now: Milliseconds) -> None:
    """Decide whether a provider is allowed."""
    tx.execute(
        "INSERT INTO federation_rules (domain, allowed, changed_at) VALUES (?, ?, ?)"
        " ON CONFLICT (domain) DO UPDATE SET allowed = excluded.allowed, changed_at = excluded.changed_at",
        (domain, allowed, now),
    )


def drop_rule(tx: Tx, domain: ProviderId) -> None:
    """Let the configuration decide on a provider."""
    tx.execute("DELETE FROM federation_rules WHERE domain = ?", (domain,))
