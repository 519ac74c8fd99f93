"""Problem documents (RFC 9457): what a `MimiError` looks like on the wire.

Only this module writes `application/problem+json`; `http/peers/problems.py` reads what other providers write. An
exception that is not a `MimiError` is a fault of ours: the caller gets a bare `internal`, and the log has the details.
"""

from __future__ import annotations

import json

import attrs

from mimids.errors import Internal, Malformed, MimiError, Unauthenticated
from mimids.http.media_types import PROBLEM_JSON
from mimids.wire.codec import WireError


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
