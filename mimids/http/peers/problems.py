"""Problem documents (RFC 9457) that other providers answer with, read back into a `MimiError`.

`http/api/problems.py` writes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import Final

from mimids.errors import (
    CertificateMismatch,
    CertificateRequired,
    Member,
    MimiError,
    PeerFailed,
    PeerUnavailable,
    Unauthenticated,
    every_error,
)
from mimids.http.media_types import PROBLEM_JSON, without_parameters

RETRY_AFTER_SECONDS: Final = 5  # for an answer of 5xx without Retry-After
RETRY_CAP_SECONDS: Final = 86_400
TEXT_CHARS: Final = 400  # kept of each text in the document
MEMBERS: Final = 16

_BY_TYPE: Final = {kind.problem_type(): kind for kind in every_error()}
_STANDARD: Final = frozenset({"type", "title", "status", "detail", "instance"})
# These describe us, the caller. Passed on to a client of ours, they would seem to describe the client.
_ABOUT_THE_CALLER: Final = (Unauthenticated, CertificateRequired, CertificateMismatch)


def error_from(status: int, headers: Mapping[str, str], body: bytes, *, now_seconds: float) -> MimiError:
    """Return the error that an answer with a status outside 2xx stands for; header names are in lower case.

    5xx and 408 are `PeerUnavailable`, with the peer's Retry-After (at most a day). A problem type that we know is that
    error. Anything else is `PeerFailed`.
    """
    if status >= 500 or status == 408:
        return PeerUnavailable(f"it answered {status}", retry_after=_retry_after(headers, now_seconds))
    problem = _parse(body) if without_parameters(headers.get("content-type", "")) == PROBLEM_JSON else {}
    kind = _BY_TYPE.get(str(problem.get("type")))
    if kind is None or issubclass(kind, _ABOUT_THE_CALLER) or kind.status != status:
        return PeerFailed(f"it answered {status}" + (f", {kind.code}" if kind else ""))
    error = kind.__new__(kind)
    MimiError.__init__(error, _text(problem.get("detail")), **dict(_members(problem)))
    return error


def _parse(body: bytes) -> dict[str, object]:
    try:
        problem = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return problem if isinstance(problem, dict) else {}


def _text(value: object) -> str:
    return value[:TEXT_CHARS] if isinstance(value, str) else ""


def _members(problem: Mapping[str, object]) -> Iterator[tuple[str, Member]]:
    for name, value in list(problem.items())[: MEMBERS + len(_STANDARD)]:
        if name in _STANDARD or len(name) > TEXT_CHARS:
            continue
        if name == "retry_after":
            if type(value) is int:
                yield name, min(max(value, 0), RETRY_CAP_SECONDS)
        elif isinstance(value, str):
            yield name, _text(value)
        elif isinstance(value, int | float) and isfinite(value):
            yield name, value
        elif isinstance(value, list) and all(isinstance(item, str) for item in value):
            yield name, [_text(item) for item in value[:MEMBERS]]


def _retry_after(headers: Mapping[str, str], now_seconds: float) -> int:
    """Return the seconds of Retry-After, which are written as a number or as a date (RFC 9110 section 10.2.3)."""
    written = headers.get("retry-after", "").strip()
    if written.isascii() and written.isdigit() and len(written) < 10:
        return min(int(written), RETRY_CAP_SECONDS)
    try:
        seconds = parsedate_to_datetime(written).timestamp() - now_seconds
    except (ValueError, OverflowError):
        return RETRY_AFTER_SECONDS
    return min(max(int(seconds), 0), RETRY_CAP_SECONDS)
