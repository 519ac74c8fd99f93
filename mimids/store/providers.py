"""Provider domains, and the numbers by which other tables refer to them."""

from __future__ import annotations

from mimids.store.engine.transaction import Tx
from mimids.wire.ids import ProviderId


def provider_row(tx: Tx, domain: ProviderId) -> int | None:
    """Return the number of a provider, None if it has none."""
    found = tx.one("SELECT id FROM providers WHERE domain = ?", (domain,))
    return None if found is None else int(found[0])


def ensure_provider(tx: Tx, domain: ProviderId) -> int:
    """Return the number of a provider; add the provider if it has none."""
    found = provider_row(tx, domain)
    return tx.insert("INSERT INTO providers (domain) VALUES (?) RETURNING id", (domain,)) if found is None else found


def every_domain(tx: Tx) -> list[ProviderId]:
    """Return all known providers, this one too."""
    return [ProviderId(row[0]) for row in tx.all("SELECT domain FROM providers ORDER BY id")]


def newest_domains(tx: Tx, limit: int) -> list[ProviderId]:
    """Return the providers that were added last, the newest at the end."""
    rows = tx.all("SELECT domain FROM providers ORDER BY id DESC LIMIT ?", (limit,))
    return [ProviderId(row[0]) for row in reversed(rows)]


def domain_of(tx: Tx, provider: int) -> ProviderId:
    """Return the domain of a provider's number; raise `LookupError` if there is none."""
    found = tx.one("SELECT domain FROM providers WHERE id = ?", (provider,))
    if found is None:
        raise LookupError("no such provider")
    return ProviderId(found[0])
