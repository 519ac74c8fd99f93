"""Problem documents (RFC 9457): a `MimiError` on its way out, and back from another provider's answer.

Nothing else makes or reads `application/problem+json`. What is not in the tree of `errors` is our fault: it leaves as
a bare `internal`, and only the log says more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import Final

import attrs

from mimids.errors import (
    CertificateMismatch,
    CertificateRequired,
    Internal,
    Malformed,
    Member,
    MimiError,
    PeerFailed,
    PeerUnavailable,
    Unauthenticated,
    every_error,
)
from mimids.http.api.endpoints import PROBLEM_JSON
from mimids.wire.codec import WireError

RETRY_AFTER_SECONDS: Final = 5  # where a peer that answers 5xx does not say
RETRY_CAP_SECONDS: Final = 86_400
TEXT_CHARS: Final = 400  # of each text that is taken from a peer's problem
MEMBERS: Final = 16

_BY_TYPE: Final = {kind.problem_type(): kind for kind in every_error()}
_STANDARD: Final = frozenset({"type", "title", "status", "detail", "instance"})
# These say something about us to the peer; passed on, they would say it about our client to our client.
_OURS: Final = (Unauthenticated, CertificateRequired, CertificateMismatch)


@attrs.frozen
class HttpReply:
    """An answer in HTTP's own terms; header names in lower case."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""


def classify(error: Exception) -> MimiError:
    """Return what the peer may see of `error`: itself, a malformed request with its place, or a bare `internal`."""
    if isinstance(error, MimiError):
        return error
    if isinstance(error, WireError):
        return Malformed(str(error))
    return Internal()


def document(error: MimiError) -> bytes:
    """Return the JSON of a refusal, which also travels inside `SendResult` and `Frame`."""
    members: dict[str, object] = dict(error.members)
    members |= {"type": error.problem_type(), "title": error.title, "status": error.status.value, "detail": str(error)}
    return json.dumps(members, separators=(",", ":")).encode()


def reply(error: MimiError) -> HttpReply:
    """Return the answer that carries a refusal."""
    headers = [(b"content-type", PROBLEM_JSON.encode())]
    seconds = error.members.get("retry_after")
    if isinstance(seconds, int):
        headers.append((b"retry-after", b"%d" % seconds))
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b"Bearer"))  # RFC 9110 section 15.5.2: MUST
    return HttpReply(error.status.value, headers, document(error))


# --- the way back -------------------------------------------------------------------------------------------------


def error_from(status: int, headers: Mapping[str, str], body: bytes, *, now_seconds: float) -> MimiError:
    """Return what an answer outside 2xx means to us.

    5xx is `PeerUnavailable`, with the peer's Retry-After (at most a day); a problem type that we know is that error;
    anything else is `PeerFailed`. Its `heard` are the headers.
    """
    error = _meaning(status, headers, body, now_seconds)
    error.heard = headers
    return error


def _meaning(status: int, headers: Mapping[str, str], body: bytes, now_seconds: float) -> MimiError:
    if status >= 500 or status == 408:
        return PeerUnavailable(f"it answered {status}", retry_after=_retry_after(headers, now_seconds))
    problem = _parse(body) if _is_problem(headers) else {}
    kind = _BY_TYPE.get(str(problem.get("type")))
    if kind is None or issubclass(kind, _OURS) or kind.status != status:
        return PeerFailed(f"it answered {status}" + (f", {kind.code}" if kind else ""))
    error = kind.__new__(kind)
    MimiError.__init__(error, _text(problem.get("detail")), **dict(_members(problem)))
    return error


def _is_problem(headers: Mapping[str, str]) -> bool:
    return headers.get("content-type", "").partition(";")[0].strip().lower() == PROBLEM_JSON


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
    """Read Retry-After: seconds, or a date (RFC 9110 section 10.2.3)."""
    written = headers.get("retry-after", "").strip()
    if written.isascii() and written.isdigit() and len(written) < 10:
        return min(int(written), RETRY_CAP_SECONDS)
    try:
        seconds = parsedate_to_datetime(written).timestamp() - now_seconds
    except (ValueError, OverflowError):
        return RETRY_AFTER_SECONDS
    return min(max(int(seconds), 0), RETRY_CAP_SECONDS)
