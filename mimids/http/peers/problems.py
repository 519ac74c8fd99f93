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
LARGEST_NUMBER: Final = (1 << 63) - 1  # that is passed on

_BY_TYPE: Final = {kind.problem_type(): kind for kind in every_error()}
_STANDARD: Final = frozenset({"type", "title", "status", "detail", "instance"})
# These problems are about us, the caller. If we passed one on, our client would think that it is about the client.
_ABOUT_THE_CALLER: Final = (Unauthenticated, CertificateRequired, CertificateMismatch)
_CALLER_STATUSES: Final = frozenset({401, 407})  # about the credentials of the caller, whatever the body says


def describes_us(status: int, headers: Mapping[str, str], body: bytes) -> bool:
    """Tell whether a refusal is about us as the caller.

    Do not pass such a refusal on to a client: the client would think that its own request was refused.
    """
    if status in _CALLER_STATUSES:
        return True
    kind = _BY_TYPE.get(str(_problem(headers, body).get("type")))
    return kind is not None and issubclass(kind, _ABOUT_THE_CALLER)


def error_from(status: int, headers: Mapping[str, str], body: bytes, *, now_seconds: float) -> MimiError:
    """Return the error that an answer with a status outside 2xx stands for; header names are in lower case.

    5xx and 408 become `PeerUnavailable`, with the peer's Retry-After (at most a day). A problem type that we know
    becomes its own error. Anything else becomes `PeerFailed`.
    """
    if status >= 500 or status == 408:
        return PeerUnavailable(f"the provider answered {status}", retry_after=retry_after(headers, now_seconds))
    problem = _problem(headers, body)
    kind = _BY_TYPE.get(str(problem.get("type")))
    if kind is None or issubclass(kind, _ABOUT_THE_CALLER) or kind.status != status:
        return PeerFailed(f"the provider answered {status}" + (f", {kind.code}" if kind else ""))
    error = kind.__new__(kind)
    MimiError.__init__(error, _text(problem.get("detail")))
    error.members = dict(_members(problem))  # not as arguments: a peer may name a member "self"
    return error


def _problem(headers: Mapping[str, str], body: bytes) -> dict[str, object]:
    if without_parameters(headers.get("content-type", "")) != PROBLEM_JSON:
        return {}
    try:
        problem = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return problem if isinstance(problem, dict) else {}


def _text(value: object) -> str:
    """Return the start of a text, without unpaired surrogates: neither the database nor a log line can hold them."""
    return value[:TEXT_CHARS].encode(errors="replace").decode() if isinstance(value, str) else ""


def _members(problem: Mapping[str, object]) -> Iterator[tuple[str, Member]]:
    for name, value in list(problem.items())[: MEMBERS + len(_STANDARD)]:
        if name in _STANDARD or name != _text(name):
            continue
        if name == "retry_after":
            if type(value) is int:
                yield name, min(max(value, 0), RETRY_CAP_SECONDS)
        elif isinstance(value, str):
            yield name, _text(value)
        elif isinstance(value, int | float) and _is_storable(value):
            yield name, value
        elif isinstance(value, list) and all(isinstance(item, str) for item in value):
            yield name, [_text(item) for item in value[:MEMBERS]]


def _is_storable(number: float) -> bool:
    """Tell whether a number is finite and, if whole, has at most 64 bits; larger numbers overflow in arithmetic."""
    return -LARGEST_NUMBER <= number <= LARGEST_NUMBER if isinstance(number, int) else isfinite(number)


def retry_after(headers: Mapping[str, str], now_seconds: float) -> int:
    """Return the seconds of Retry-After, which are written as a number or as a date (RFC 9110 section 10.2.3).

    Return RETRY_AFTER_SECONDS if the header is missing or not valid, and never more than RETRY_CAP_SECONDS.
    """
    written = headers.get("retry-after", "").strip()
    if written.isascii() and written.isdigit() and len(written) < 10:
        return min(int(written), RETRY_CAP_SECONDS)
    try:
        seconds = parsedate_to_datetime(written).timestamp() - now_seconds
    except (ValueError, OverflowError):
        return RETRY_AFTER_SECONDS
    return min(max(int(seconds), 0), RETRY_CAP_SECONDS)
