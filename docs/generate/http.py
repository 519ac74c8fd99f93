"""Prints the endpoints, problems, structures and metrics in docs/ from the code.

`python -m docs.generate.http docs/http.md docs/wire.md docs/metrics.md` replaces the text between the markers of these
documents. A test fails if a document differs from what would be printed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from docs.generate.markers import fill
from docs.generate.remedies import REMEDIES
from docs.generate.wire import structures
from mimids.config import parse
from mimids.errors import (
    CertificateMismatch,
    CertificateRequired,
    Internal,
    Malformed,
    MimiError,
    NotFound,
    ProviderNotAllowed,
    RateLimited,
    ShuttingDown,
    TimedOut,
    TooLarge,
    Unauthenticated,
    UnsupportedMediaType,
    every_error,
)
from mimids.http.api.bodies import Body
from mimids.http.api.device_handlers import device_limits
from mimids.http.api.devices import DEVICES
from mimids.http.api.endpoints import AnyEndpoint
from mimids.http.api.operator import OPERATOR
from mimids.http.api.providers import PROVIDERS
from mimids.http.api.public import PUBLIC
from mimids.metrics import catalogue
from mimids.values import Anyone, Caller, Device, Follower, Operator

ROOT: Final = Path(__file__).parents[2]
_COMMENT: Final = re.compile(r"^(\w+) = \S+ +# (.+)$", re.MULTILINE)

SECTIONS: Final[tuple[tuple[str, tuple[AnyEndpoint, ...]], ...]] = (
    ("Public", PUBLIC),
    ("Between providers", PROVIDERS),
    ("From the provider's own devices", DEVICES),
    ("Operator", OPERATOR),
)

_OF_CALLER: Final[dict[type[Caller], tuple[type[MimiError], ...]]] = {
    Anyone: (),
    Operator: (),
    Follower: (CertificateRequired, CertificateMismatch, ProviderNotAllowed),
    Device: (Unauthenticated, RateLimited),
}
_OF_BODIES: Final = (Malformed, UnsupportedMediaType, TooLarge, TimedOut)


def problems_of(endpoint: AnyEndpoint) -> tuple[type[MimiError], ...]:
    """Return every problem that an endpoint may answer with: those of its row, and those of its caller and body."""
    found = [*_OF_CALLER[endpoint.caller]]
    if endpoint.request_body is not None:
        found += _OF_BODIES
    elif endpoint.query or endpoint.websocket or "{" in endpoint.path:
        found.append(Malformed)
    if "{" in endpoint.path:
        found.append(NotFound)
    found += [*endpoint.problems, ShuttingDown, Internal]
    return tuple(dict.fromkeys(found))


def endpoint_tables() -> str:
    """Return the endpoints of each listener in Markdown, with bodies, limits and problems."""
    parts: list[str] = []
    for title, rows in SECTIONS:
        parts.append(f"### {title}\n")
        parts.extend("\n".join(_endpoint(row)) + "\n" for row in rows)
    return "\n".join(parts)


def problem_table() -> str:
    """Return a Markdown table of every problem type: its status, its meaning, and what a device does about it."""
    rows = ["| problem | status | meaning | again |", "| --- | --- | --- | --- |"]
    for kind in every_error():
        meaning = " ".join((kind.__doc__ or "").split()).replace("|", "\\|")
        again, remedy = REMEDIES[kind]
        rows.append(f"| `{name_of(kind)}` | {kind.status.value} | {meaning} | {again.value}: {remedy} |")
    return "\n".join(rows) + "\n"


def limit_table() -> str:
    """Return a Markdown table of the limits in the answer to `me`, with their defaults."""
    config = parse({"provider": "a.example"}, ROOT)
    meanings = dict(_COMMENT.findall((ROOT / "config.example.toml").read_text(encoding="utf-8")))
    meanings["upload_packages"] = "KeyPackages in one upload; not configurable"
    rows = ["| limit | default | meaning |", "| --- | --- | --- |"]
    rows += [f"| `{name}` | {value:,} | {meanings[name]} |" for name, value in device_limits(config).items()]
    return "\n".join(rows) + "\n"


_PRINTED: Final[Mapping[str, Callable[[], str]]] = {
    "endpoints": endpoint_tables,
    "problems": problem_table,
    "device-limits": limit_table,
    "structures": structures,
    "metrics": catalogue,
}


def written(text: str) -> str:
    """Return a document with its printed parts replaced; see `markers.fill`."""
    return fill(text, _PRINTED)


def _endpoint(row: AnyEndpoint) -> Iterator[str]:
    query = "".join(f" `?{name}`" for name in row.query)
    kind = "WebSocket" if row.websocket else row.method
    yield f"**`{kind} {row.path}`**{query} · `{row.name}`  "
    yield f"{row.summary[0].upper()}{row.summary[1:]}.\n"
    if row.request_body is not None:
        yield f"- request: {_body(row.request_body)}, at most `{row.limit}`"
    if row.answer_body is not None:
        yield f"- answer: {row.status.value}, {_body(row.answer_body)}"
    elif not row.websocket:
        yield f"- answer: {row.status.value}, no content"
    yield "- problems: " + ", ".join(f"`{name_of(kind)}`" for kind in problems_of(row))
    for what, body in (("A request", row.request_body), ("An answer", row.answer_body)):
        if body is not None and body.example:
            yield f"\n{what}:\n\n```json\n{json.dumps(json.loads(body.example), indent=2)}\n```"


def _body(body: Body[object]) -> str:
    return f"`{body.media_type}`" + ("" if body.schema == body.media_type else f" `{body.schema}`")


def name_of(kind: type[MimiError]) -> str:
    """Return the last part of a problem's type."""
    return kind.problem_type().removeprefix("urn:mimids:problem:").rpartition("#")[2]


def every_endpoint() -> Iterable[AnyEndpoint]:
    """Return all endpoints of the reference."""
    return (row for _, rows in SECTIONS for row in rows)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
