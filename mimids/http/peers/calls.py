"""Other providers, called over HTTPS: `ds.ports.Peers` on httpcore.

httpcore is the part of httpx that speaks HTTP. It is used without httpx because that part alone lets us choose the
address that is connected to, keeps no cookies, follows no redirect, reads no proxy or .netrc from the environment
and logs no URL; it also costs less (docs/decisions/0004).

A peer is named by its domain and nothing else: it is the origin of its connections, the name its certificate must
have and the Host it is told, wherever `providers.NAME.url` sends us.
"""

from __future__ import annotations

import ipaddress
import socket
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from ssl import SSLContext
from typing import Any, Final
from urllib.parse import urlsplit

import attrs
import httpcore
import trio

from mimids.config import Config
from mimids.ds.ports import Clock, PeerAnswer
from mimids.errors import PeerFailed, PeerUnavailable, ProviderNotAllowed
from mimids.http.api import problems
from mimids.http.server.tls import ClientTls, Pair, Trust
from mimids.wire.ids import ProviderId

CONNECTIONS: Final = 256
IDLE_CONNECTIONS: Final = 64
IDLE_SECONDS: Final = 30  # less than any listener of ours keeps an idle connection
CALLS_TO_ONE: Final = 64  # at a time: a slow peer must not hold what calls to others need
CLOSE_SECONDS: Final = 5
PROBLEM_OCTETS: Final = 65_536  # of an answer that is none
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052
USER_AGENT: Final = b"mimids"

# A connection that idled may be closed by the peer just as it is used again; that says nothing about the peer.
_STALE: Final = (httpcore.RemoteProtocolError, httpcore.ReadError, httpcore.WriteError)


@attrs.frozen
class PeerStatistics:
    """Calls in flight, and what became of those that ended."""

    calling: int
    answered: int
    refused: int
    unavailable: int


class _BeforeTls(httpcore.AsyncNetworkStream):
    """A connection before its TLS handshake; httpcore would leave it open where that is cancelled."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream

    async def start_tls(
        self,
        ssl_context: SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore says so
    ) -> httpcore.AsyncNetworkStream:
        try:
            return await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self.aclose()
            raise

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Dialler(httpcore.AsyncNetworkBackend):
    """Connects to a provider by its name: where its url says, else to port 443 of what the name resolves to."""

    def __init__(self, config: Config) -> None:
        self._open = config.federation.mode == "open"
        self._urls = {name: urlsplit(peer.url) for name, peer in config.providers.items() if peer.url is not None}
        self._tcp = httpcore.TrioBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore says so
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.AsyncNetworkStream:
        return _BeforeTls(await self._connect(host, port, timeout))

    async def _connect(
        self,
        host: str,
        port: int,
        timeout: float | None,  # noqa: ASYNC109  # as above
    ) -> httpcore.AsyncNetworkStream:
        url = self._urls.get(ProviderId(host))
        if url is not None and url.hostname is not None:
            return await self._tcp.connect_tcp(url.hostname, url.port or port, timeout)
        if not self._open:
            return await self._tcp.connect_tcp(host, port, timeout)
        addresses = await _public_addresses(host, port)
        for address in addresses[:-1]:
            try:
                return await self._tcp.connect_tcp(address, port, (timeout or CLOSE_SECONDS) / len(addresses))
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._tcp.connect_tcp(addresses[-1], port, timeout)


async def _public_addresses(host: str, port: int) -> list[str]:
    """Resolve a name that anybody may have given us; what is connected to is what was looked at here.

    One address that is not public spoils the name: it would let a stranger aim us at our own network.
    """
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise httpcore.ConnectError(str(error)) from error
    addresses = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))
    if not addresses or not all(_is_public(address) for address in addresses):
        raise ProviderNotAllowed("its name does not resolve to public addresses only")
    return addresses


def _is_public(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.sixtofour is not None or parsed.teredo is not None:  # tunnels to IPv4 that nobody serves from
            return False
        if parsed.ipv4_mapped is not None or parsed in _NAT64:  # an IPv4 address, as IPv6-only networks see it
            parsed = ipaddress.IPv4Address(parsed.packed[-4:])
    return parsed.is_global and not parsed.is_multicast


@attrs.define(eq=False)
class _Pool:
    """Connections under one SSL context. After a reload the old one is closed by its last call."""

    connections: httpcore.AsyncConnectionPool
    calls: int = 0
    retired: bool = False


class _Pools:
    """The pools of one `ClientTls`: one for all providers, and one for each that has a trust file of its own."""

    def __init__(self, tls: ClientTls, dialler: _Dialler) -> None:
        self._tls = tls
        self._dialler = dialler
        self._pools: dict[SSLContext, _Pool] = {}

    @asynccontextmanager
    async def borrow(self, provider: ProviderId) -> AsyncIterator[httpcore.AsyncConnectionPool]:
        context = self._tls.context(provider)
        pool = self._pools.get(context)
        if pool is None:
            pool = self._pools[context] = _Pool(
                httpcore.AsyncConnectionPool(
                    ssl_context=context,
                    max_connections=CONNECTIONS,
                    max_keepalive_connections=IDLE_CONNECTIONS,
                    keepalive_expiry=IDLE_SECONDS,
                    network_backend=self._dialler,
                )
            )
        pool.calls += 1
        try:
            yield pool.connections
        finally:
            pool.calls -= 1
            if pool.retired and not pool.calls:
                await _close(pool)

    async def reload(self) -> None:
        self._tls.reload()
        await self.close(only_idle=True)

    async def close(self, *, only_idle: bool = False) -> None:
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.retired = True
            if not (only_idle and pool.calls):
                await _close(pool)


async def _close(pool: _Pool) -> None:
    with trio.move_on_after(CLOSE_SECONDS, shield=True):
        await pool.connections.aclose()


class HttpPeers:
    """`ds.ports.Peers`; made by `open_peers`."""

    def __init__(self, config: Config, clock: Clock, *, named: ClientTls, nameless: ClientTls) -> None:
        dialler = _Dialler(config)
        self._config = config
        self._clock = clock
        self._named = _Pools(named, dialler)
        self._nameless = _Pools(nameless, dialler)
        self._calling: Counter[ProviderId] = Counter()
        self._answered = self._refused = self._unavailable = 0

    async def call(
        self,
        provider: ProviderId,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        media_type: str = "application/mimi-ds",
        timeout_seconds: float = 30,
        wait_seconds: int | None = None,
    ) -> PeerAnswer:
        """Exchange one request over mutual TLS; see `ds.ports.Peers`. Answers are cut off at max_body_bytes."""
        headers = [(b"from", b"mimi@" + self._config.provider.encode())]
        if wait_seconds is not None:
            headers.append((b"prefer", b"wait=%d" % wait_seconds))
            timeout_seconds += wait_seconds
        status, answer = await self._exchange(
            self._named,
            _request(provider, method, path, body, media_type, headers),
            seconds=timeout_seconds,
            octets=self._config.limits.max_body_bytes,
            tries=2,  # a request of ours may be asked for twice
        )
        if 200 <= status < 300:
            self._answered += 1
            return answer
        error = problems.error_from(status, answer.headers, answer.body, now_seconds=self._clock.now() / 1000)
        if isinstance(error, PeerUnavailable):
            self._unavailable += 1
        else:
            self._refused += 1
        raise error

    async def call_plainly(
        self, provider: ProviderId, method: str, path: str, body: bytes = b"", *, media_type: str
    ) -> PeerAnswer:
        """Exchange one request that says nothing of us or of a client; see `ds.ports.Peers`."""
        status, answer = await self._exchange(
            self._nameless,
            _request(provider, method, path, body, media_type, []),
            seconds=self._config.federation.answer_seconds,
            octets=self._config.limits.ohttp_bytes,
            tries=1,  # RFC 9458 section 6.5.1: a relay MUST NOT
        )
        self._answered += 1
        return attrs.evolve(answer, headers={**answer.headers, ":status": str(status)})

    async def reload(self) -> None:
        """Take up renewed certificate and trust files, for connections made from now on.

        Raises `tls.CertificateFileError`, with the old files still in use.
        """
        await self._named.reload()
        await self._nameless.reload()

    async def close(self) -> None:
        """Close all connections; within ten seconds, cancelled or not."""
        await self._named.close()
        await self._nameless.close()

    def statistics(self) -> PeerStatistics:
        """Return the counts so far."""
        return PeerStatistics(self._calling.total(), self._answered, self._refused, self._unavailable)

    async def _exchange(
        self, pools: _Pools, request: httpcore.Request, *, seconds: float, octets: int, tries: int
    ) -> tuple[int, PeerAnswer]:
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


async def _ask(pool: httpcore.AsyncConnectionPool, request: httpcore.Request, octets: int) -> tuple[int, PeerAnswer]:
    """Exchange one request; an answer with more than `octets` (or a problem beyond reason) is `PeerFailed`."""
    response = await pool.handle_async_request(request)
    room = octets if response.status < 300 else min(octets, PROBLEM_OCTETS)
    pieces: list[bytes] = []
    try:
        async for piece in response.aiter_stream():
            room -= len(piece)
            if room >= 0:
                pieces.append(piece)
            else:
                # Closed here, httpcore's generators end by what they raise; left alone, they would not end at all.
                await response.aclose()
    except (httpcore.NetworkError, httpcore.ProtocolError):
        if room >= 0:
            raise
    finally:
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await response.aclose()
    if room < 0:
        raise PeerFailed("its answer is too large")
    return response.status, PeerAnswer(b"".join(pieces), _headers(response.headers))


def _headers(given: list[tuple[bytes, bytes]]) -> Mapping[str, str]:
    headers: dict[str, str] = {}
    for name_, value_ in given:
        name, value = name_.decode("latin-1").lower(), value_.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


@asynccontextmanager
async def open_peers(config: Config, clock: Clock) -> AsyncIterator[HttpPeers]:
    """Give the way to other providers, as configured; raise `tls.CertificateFileError` where files do not do."""
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
