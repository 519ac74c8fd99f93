"""The list of other providers, and the page of one."""

from __future__ import annotations

from mimids.http.console import offers
from mimids.http.console.answers import table_of
from mimids.http.console.parts import PageSection
from mimids.http.console.snapshot import Snapshot


def providers(seen: Snapshot) -> str:
    """Return the other providers that are configured or known."""
    found = seen.answer("provider list")["providers"]
    rows = [{name: value for name, value in row.items() if name != "url"} for row in found]
    table = table_of("providers", rows, seen.ours)
    acts = offers.named(("provider allow", "ban add"), seen.back)
    return seen.page("Other providers", [PageSection("By domain", "providers", [table], acts=acts)])


def provider(seen: Snapshot, *, provider: str) -> str:
    """Return the page of one provider: what it follows, what is pending for it, its terms.

    Raises `NotFound` for an unknown provider.
    """
    answer = seen.answer("provider show", {"provider": provider})
    without = (
        "ban add" if answer["banned"] else "ban remove",
        "provider allow" if answer["allowed"] else "provider remove",
    )
    acts = offers.of_page({"provider": provider, "subject": provider}, (), seen.back, without=without)
    return seen.page(provider, [seen.section_of("What is known", "provider", answer, acts), _welcomes(seen, provider)])


def _welcomes(seen: Snapshot, provider: str) -> PageSection:
    """Return the Welcomes that wait for a provider, with acts on each."""
    found = seen.answer("welcome list", {"provider": provider})["welcomes"]
    rows = [{name: value for name, value in row.items() if name not in ("provider", "group_id")} for row in found]
    table = seen.table_with_acts("welcome", "welcomes", rows, {"id": "id"})
    return PageSection("Welcomes for it that are not delivered", "welcomes", [table])
