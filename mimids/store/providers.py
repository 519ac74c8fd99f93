"""Provider domains and the small numbers that other tables know them by."""

from __future__ import annotations

from mimids.store.engine.transaction import Tx
from mimids.wire.ids import ProviderId


def provider_row(tx: Tx, domain: ProviderId) -> int | None:
    """Return the number of a provider, None if nothing here ever referred to it."""
    found = tx.one("SELECT id FROM providers WHERE domain = ?", (domain,))
    return None if found is None else int(found[0])


def ensure_provider(tx: Tx, domain: ProviderId) -> int:
    """Return the number of a provider, giving it one if it has none."""
    found = provider_row(tx, domain)
    return tx.insert("INSERT INTO providers (domain) VALUES (?)", (domain,)) if found is None else found


def every_domain(tx: Tx) -> list[ProviderId]:
    """Return all providers that something here refers to, ourselves too."""
    return [ProviderId(row[0]) for row in tx.all("SELECT domain FROM providers ORDER BY id")]


def domain_of(tx: Tx, provider: int) -> ProviderId:
    """Return the domain behind a number."""
    found = tx.one("SELECT domain FROM providers WHERE id = ?", (provider,))
    if found is None:
        raise LookupError("no such provider")
    return ProviderId(found[0])
