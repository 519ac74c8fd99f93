"""Which pages of other origins may use the client listener, and the headers for it (CORS, http: web-pages).

A browser lets a page read an answer of another origin only if the answer names the page's origin. Before a request with
a token, the browser sends a preflight: an OPTIONS request without the token, which the table of endpoints answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from mimids.errors import OriginNotAllowed
from mimids.http.header_names import LINEAR, REQUEST_ID
from mimids.ohttp.keys_signature import HEADER

Headers = list[tuple[bytes, bytes]]

MAX_AGE_SECONDS: Final = 7200  # the longest time for which Chromium caches the answer to a preflight
_REQUEST_HEADERS: Final = b"authorization, content-type, prefer"  # the headers that a device sends
_ANSWER_HEADERS: Final = f"date, {LINEAR}, {HEADER.lower()}, {REQUEST_ID}, retry-after".encode()
_VARY: Final = (b"vary", b"Origin")


class Cors:
    """The origins of the pages that may use a listener; if there are none, no CORS headers are sent."""

    def __init__(self, origins: Iterable[str] = ()) -> None:
        self._origins = frozenset(origins)

    def headers(self, request: Mapping[str, str]) -> Headers:
        """Return the CORS headers of the answer to a request with these headers."""
        if not self._origins:
            return []
        origin = request.get("origin")
        if origin not in self._origins:
            return [_VARY]
        return [
            _VARY,
            (b"access-control-allow-origin", origin.encode()),
            (b"access-control-expose-headers", _ANSWER_HEADERS),
        ]

    def preflight(self, request: Mapping[str, str], methods: Iterable[str]) -> Headers:
        """Return the additional headers of the answer to a preflight, for a path with these methods."""
        if request.get("origin") not in self._origins or "access-control-request-method" not in request:
            return []
        return [
            (b"access-control-allow-methods", ", ".join(sorted(methods)).encode()),
            (b"access-control-allow-headers", _REQUEST_HEADERS),
            (b"access-control-max-age", b"%d" % MAX_AGE_SECONDS),
        ]

    def check_stream(self, request: Mapping[str, str]) -> None:
        """Raise `OriginNotAllowed` if a page of another origin opens a WebSocket.

        CORS does not apply to WebSockets, so the server has to check the header Origin (RFC 6455 section 10.2). A
        client that is not a browser need not send that header.
        """
        origin = request.get("origin")
        if origin is not None and origin not in self._origins:
            raise OriginNotAllowed


NO_PAGES: Final = Cors()
