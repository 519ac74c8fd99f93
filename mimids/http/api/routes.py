"""Which endpoint a request is for: by the name in Host, by path and by method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

import attrs

from mimids.errors import Malformed, NotFound
from mimids.http.api.bodies import Body
from mimids.http.api.endpoints import AnyEndpoint
from mimids.http.server.messages import HttpRequest


class SizeLimits(Protocol):
    """Limits in octets, by name: `[limits]`, or a dict."""

    def __getitem__(self, name: str, /) -> int: ...


@attrs.frozen
class Route:
    """An endpoint, with what can be computed before any request."""

    endpoint: AnyEndpoint
    request: Body[Any] | None
    answer: Body[Any] | None
    limits: SizeLimits

    @property
    def limit(self) -> int:
        """Return how many octets the request body may have."""
        return self.limits[self.endpoint.limit]


class Routes:
    """The endpoints of a listener by path and method.

    `limits` has the octets that endpoints name in `limit`. With `hosts`, requests with another Host are refused.
    """

    def __init__(self, endpoints: Iterable[AnyEndpoint], limits: SizeLimits, hosts: frozenset[str] | None) -> None:
        self._hosts = hosts
        self._exact: dict[bytes, dict[str, Route]] = {}
        self._patterns: dict[tuple[bytes, ...], dict[str, Route]] = {}
        self._by_shape: dict[tuple[int, bytes], list[tuple[bytes, ...]]] = {}  # number of segments, and the last one
        for endpoint in endpoints:
            path = endpoint.path.encode()
            route = Route(endpoint, endpoint.request_body, endpoint.answer_body, limits)
            by_method = (
                self._patterns.setdefault(tuple(path.split(b"/")), {})
                if "{" in endpoint.path
                else self._exact.setdefault(path, {})
            )
            if by_method.setdefault(endpoint.method, route) is not route:
                raise ValueError(f"{endpoint.method} {endpoint.path} is in the table twice")
        for pattern in self._patterns:
            last = b"{" if pattern[-1].startswith(b"{") else pattern[-1]
            self._by_shape.setdefault((len(pattern), last), []).append(pattern)

    def find(self, request: HttpRequest) -> tuple[Mapping[str, Route], Mapping[str, str]]:
        """Return the routes of a path by method, and the values of its parts in braces.

        Raises `NotFound`, and `Malformed` for another Host than this listener's.
        """
        if self._hosts is not None and _host(request.headers) not in self._hosts:
            raise Malformed("this listener does not serve that Host; use that of public_url (operators: localhost)")
        if found := self._exact.get(request.path):
            return found, {}
        segments = request.path.split(b"/")
        for last in (segments[-1], b"{"):
            for pattern in self._by_shape.get((len(segments), last), ()):
                values = _match(pattern, segments)
                if values is not None:
                    return self._patterns[pattern], values
        raise NotFound


def allowed_methods(by_method: Mapping[str, Route]) -> bytes:
    """Return the value of the Allow header for a path."""
    methods = {*by_method, "OPTIONS"} | ({"HEAD"} if "GET" in by_method else set())
    return ", ".join(sorted(methods)).encode()


def _match(pattern: tuple[bytes, ...], segments: list[bytes]) -> dict[str, str] | None:
    """Return the percent-decoded values of the parts in braces; None if the path does not match."""
    if len(pattern) != len(segments):
        return None
    values: dict[str, str] = {}
    for wanted, given in zip(pattern, segments, strict=True):
        if wanted.startswith(b"{"):
            try:
                values[wanted[1:-1].decode()] = unquote_to_bytes(given).decode()
            except UnicodeDecodeError:
                return None
            if not given:
                return None
        elif wanted != given:
            return None
    return values


def _host(headers: Mapping[str, str]) -> str:
    """Return the name in Host, without its port."""
    host = headers.get("host", "").lower()
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
