"""Calls to other providers over HTTPS: `ds.ports.PeerTransport` on httpcore.

httpcore is the part of httpx that speaks HTTP. We use it without httpx because it lets us choose the address that we
connect to, keeps no cookies, follows no redirects, reads no proxy settings or .netrc from the environment and logs no
URLs. It is also faster (docs/decisions/0004).

A provider is named by its domain only. The domain is the origin of its connections, the name that its certificate
must have and the Host header, even where `providers.NAME.url` names another address to connect to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final

import attrs
import httpcore
import trio

from mimids.config import Config
from mimids.ds.ports import Clock, RelayedAnswer
from mimids.errors import PeerFailed, PeerUnavailable, ProviderNotAllowed
from mimids.http.media_types import MIMI_DS
from mimids.http.peers.answers import DatedAnswer, HttpAnswer, dated_answer, relayed_answer, terms_revision
from mimids.http.peers.dialling import Dialler
from mimids.http.peers.pools import CLOSE_SECONDS, Pools
from mimids.http.peers.problems import error_from
from mimids.http.server.tls import ClientTls, Pair, Trust
from mimids.wire.ids import ProviderId

CALLS_TO_ONE: Final = 64  # at a time, so that a slow peer does not use up the connections for calls to others
PROBLEM_OCTETS: Final = 65_536  # of an answer whose status is not 2xx
USER_AGENT: Final = b"mimids"

# The peer may close an idle connection just as we use it again. The peer is not unavailable then.
_STALE: Final = (httpcore.RemoteProtocolError, httpcore.ReadError, httpcore.WriteError)


@attrs.frozen
class PeerStatistics:
    """The number of calls in flight, and of those that ended by how they ended."""

    calling: int
    answered: int
    refused: int
    unavailable: int


class HttpPeers:
    """Implements `ds.ports.PeerTransport`; made by `open_peers`."""

    def __init__(self, config: Config, clock: Clock, *, named: ClientTls, nameless: ClientTls) -> None:
        dialler = Dialler(config)
        self._config = config
        self._clock = clock
        self._named = Pools(named, dialler)
        self._nameless = Pools(nameless, dialler)
        self._calling: Counter[ProviderId] = Counter()
        self._answered = self._refused = self._unavailable = 0

    async def call(
        self,
        provider: ProviderId,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        media_type: str = MIMI_DS,
        timeout_seconds: float = 30,
        wait_seconds: int | None = None,
        on_terms_revision: Callable[[int], None] | None = None,
    ) -> DatedAnswer:
        """Exchange one request over mutual TLS, as `PeerTransport.call` says; an answer is at most max_body_bytes."""
        headers = [(b"from", b"mimi@" + self._config.provider.encode())]
        if wait_seconds is not None:
            headers.append((b"prefer", b"wait=%d" % wait_seconds))
            timeout_seconds += wait_seconds
        answer = await self._exchange(
            self._named,
            _request(provider, method, path, body, media_type, headers),
            seconds=timeout_seconds,
            octets=self._config.limits.max_body_bytes,
            tries=2,  # every request between providers may be repeated
        )
        revision = terms_revision(answer.headers)
        if revision is not None and on_terms_revision is not None:
            on_terms_revision(revision)
        if 200 <= answer.status < 300:
            self._answered += 1
            return dated_answer(answer)
        error = error_from(answer.status, answer.headers, answer.body, now_seconds=self._clock.now() / 1000)
        if isinstance(error, PeerUnavailable):
            self._unavailable += 1
        else:
            self._refused += 1
        raise error

    async def call_plainly(
        self, provider: ProviderId, method: str, path: str, body: bytes = b"", *, media_type: str
    ) -> RelayedAnswer:
        """Exchange one request that names neither us nor a client, as `Peers.call_plainly` says."""
        answer = await self._exchange(
            self._nameless,
            _request(provider, method, path, body, media_type, []),
            seconds=self._config.federation.answer_seconds,
            octets=self._config.limits.ohttp_bytes,
            tries=1,  # RFC 9458 section 6.5.1: a relay MUST NOT retry
        )
        self._answered += 1
        return relayed_answer(answer)

    async def reload(self) -> None:
        """Read renewed certificate and trust files, for connections made from now on.

        Raises `tls.CertificateFileError`; the old files stay in use then.
        """
        await self._named.reload()
        await self._nameless.reload()

    async def close(self) -> None:
        """Close all connections; takes at most ten seconds, also when cancelled."""
        await self._named.close()
        await self._nameless.close()

    def statistics(self) -> PeerStatistics:
        """Return the counts so far."""
        return PeerStatistics(self._calling.total(), self._answered, self._refused, self._unavailable)

    async def _exchange(
        self, pools: Pools, request: httpcore.Request, *, seconds: float, octets: int, tries: int
    ) -> HttpAnswer:
        provider = ProviderId(request.url.host.decode())
        if not self._config.federation.allows(provider, us=self._config.provider):
            raise ProviderNotAllowed
        if self._calling[provider] >= CALLS_TO_ONE:
            raise PeerUnavailable("too many calls to it are in flight", retry_after=1)
        self._calling[provider] += 1
        times = {"connect": self._config.federation.connect_seconds, "pool": self._config.federation.connect_seconds}
        request.extensions = {"timeout": times}
        try:
            async with pools.borrow(provider) as pool:
                with trio.fail_after(seconds):
                    for _ in range(tries - 1):
                        with suppress(*_STALE):
                            return await _ask(pool, request, octets)
                    return await _ask(pool, request, octets)
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, trio.TooSlowError) as error:
            self._unavailable += 1
            raise PeerUnavailable from error
        finally:
            self._calling[provider] -= 1
            if not self._calling[provider]:
                del self._calling[provider]


def _request(
    provider: ProviderId, method: str, path: str, body: bytes, media_type: str, headers: list[tuple[bytes, bytes]]
) -> httpcore.Request:
    headers = [(b"host", provider.encode()), (b"user-agent", USER_AGENT), *headers]
    if body or method in ("POST", "PUT"):
        headers += [(b"content-type", media_type.encode()), (b"content-length", b"%d" % len(body))]
    url = httpcore.URL(scheme=b"https", host=provider.encode(), port=443, target=path.encode())
    return httpcore.Request(method, url, headers=headers, content=body)


async def _ask(pool: httpcore.AsyncConnectionPool, request: httpcore.Request, octets: int) -> HttpAnswer:
    """Exchange one request; raise `PeerFailed` for an answer of more than `octets`, or an error beyond its limit."""
    response = await pool.handle_async_request(request)
    room = octets if response.status < 300 else min(octets, PROBLEM_OCTETS)
    pieces: list[bytes] = []
    try:
        async for piece in response.aiter_stream():
            room -= len(piece)
            if room >= 0:
                pieces.append(piece)
            else:
                # httpcore's generators end only by raising, so close the answer and go on with the loop.
                await response.aclose()
    except (httpcore.NetworkError, httpcore.ProtocolError):
        if room >= 0:
            raise
    finally:
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await response.aclose()
    if room < 0:
        raise PeerFailed("its answer is too large")
    return HttpAnswer(response.status, _headers(response.headers), b"".join(pieces))


def _headers(given: list[tuple[bytes, bytes]]) -> Mapping[str, str]:
    headers: dict[str, str] = {}
    for name_, value_ in given:
        name, value = name_.decode("latin-1").lower(), value_.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


@asynccontextmanager
async def open_peers(config: Config, clock: Clock) -> AsyncIterator[HttpPeers]:
    """Open the connections to other providers for the block.

    Raises `tls.CertificateFileError` if a certificate, key or trust file cannot be used.
    """
    trust = Trust(
        config.tls.trust, {name: peer.trust for name, peer in config.providers.items() if peer.trust is not None}
    )
    certificate, private_key = config.tls.presented
    named = ClientTls(trust, Pair(certificate, private_key))
    peers = HttpPeers(config, clock, named=named, nameless=ClientTls(trust))
    try:
        yield peers
    finally:
        await peers.close()
