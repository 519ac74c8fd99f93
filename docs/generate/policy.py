"""The tables in docs/policy.md, printed from the rules and the rates. A test compares the document with the code.

`python -m docs.generate.policy docs/policy.md` replaces the text between the markers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from docs.generate.markers import fill
from mimids.config import Limits, keys
from mimids.errors import PolicyRefused, RateLimited
from mimids.policy.rules import RULES, MessageRule, PolicyRule, ReaderRule, SenderRule

_ABOUT: Final[dict[type[PolicyRule], str]] = {
    MessageRule: "a message of any sender",
    SenderRule: "a sender of our own provider",
    ReaderRule: "a reader of our own provider",
}
_SCOPES: Final = {
    "device": "each of our own devices",
    "user": "each of our own users, over all devices",
    "provider": "each other provider, over all its users",
    "gateway_address": "each IP address (IPv6: each /64)",
    "gateway": "all requesters together",
}


def rule_table() -> str:
    """Return the table of rules: name, subject, reason, facts with why they are certain, problem, and section."""
    return "\n".join(_rules()) + "\n"


def rate_table() -> str:
    """Return the table of rates: name, what it counts for, and default."""
    return "\n".join(_rates()) + "\n"


def written(text: str) -> str:
    """Return a document with its printed parts replaced; see `markers.fill`."""
    return fill(text, {"rules": rule_table, "rates": rate_table})


def _rules() -> Iterator[str]:
    yield "| rule | about | refused because | facts, and why they are certain | problem | section |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for rule in RULES:
        facts = "; ".join(
            f"{need.text} ({' or '.join(each.name.lower() for each in need.certain)})" for need in rule.needs
        )
        problem = "withheld" if isinstance(rule, ReaderRule) else f"`{PolicyRefused.code}`"
        yield f"| `{rule.name}` | {_ABOUT[type(rule)]} | {rule.text} | {facts} | {problem} | {rule.section} |"


def _rates() -> Iterator[str]:
    yield "| limit | counts for | default | problem |"
    yield "| --- | --- | --- | --- |"
    for name, key in keys(Limits).items():
        if "_per_" in name:
            scope = next(scope for prefix, scope in _SCOPES.items() if name.startswith(f"{prefix}_"))
            yield f"| `{name}` | {scope} | {key.default} | `{RateLimited.code}` |"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
