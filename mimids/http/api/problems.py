"""Problem documents (RFC 9457): how a `MimiError` is written.

Only this module writes `application/problem+json`; `http/peers/problems.py` reads what other providers write. An
exception that is not a `MimiError` is a fault of ours: the caller gets a bare `internal`, and the log has the details.
"""

from __future__ import annotations

import json

from mimids.errors import Busy, Internal, Malformed, MimiError, Unauthenticated
from mimids.http.media_types import PROBLEM_JSON
from mimids.http.server.messages import HttpReply
from mimids.wire.codec import WireError


def classify(error: Exception) -> MimiError:
    """Return the error that the caller may see: `error` itself, `Malformed` for a `WireError`, else `Internal`.

    A lack of memory becomes `Busy`, because the request may succeed later.
    """
    if isinstance(error, MimiError):
        return error
    if isinstance(error, WireError):
        return Malformed(str(error))
    if isinstance(error, MemoryError):
        return Busy("the server is short of memory")
    return Internal()


def document(error: MimiError) -> bytes:
    """Return the JSON of a refusal; `SendResult` and `Frame` carry the same JSON.

    `section` is left out if it names a section of our own docs/semantics.md: callers get RFCs and drafts only.
    """
    members: dict[str, object] = dict(error.members)
    if str(members.get("section")).startswith("semantics"):
        del members["section"]
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
