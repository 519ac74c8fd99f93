"""Connections to other providers: which address a provider's name leads to.

In open federation a name may come from a stranger. Then every address that it resolves to must be public, and we
connect to the addresses that were checked.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from ssl import SSLContext
from typing import Any, Final, cast
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import httpcore
import trio

from mimids.config import Config
from mimids.ds.ports import Clock
from mimids.http.peers.addresses import is_public
from mimids.http.server.tls import certificates_end
from mimids.wire.ids import ProviderId

ATTEMPT_SECONDS: Final = 5  # for all addresses of a name together, if the caller sets no timeout
LAST_ATTEMPT_SECONDS: Final = 1  # for the addresses not yet tried when that time is over
MAX_ADDRESSES: Final = 4  # of a name that we connect to for one request
LOOKUP_THREADS: Final = 16  # for names from strangers, and as many more for names in the configuration
NO_ADDRESS: Final = "its name has no address that we may connect to"


class _PeerStream(httpcore.AsyncNetworkStream):
    """A TLS connection that is not used again once a certificate of the peer has ended."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, ends: float, clock: Clock) -> None:
        self._stream = stream
        self._ends = ends
        self._clock = clock

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109  # httpcore declares it
        return await self._stream.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109  # as above
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    def get_extra_info(self, info: str) -> Any:
        # If an idle connection is readable, httpcore assumes that the peer has closed it.
        if info == "is_readable" and self._clock.now() >= self._ends * 1000:
            return True
        return self._stream.get_extra_info(info)


class _StreamBeforeTls(httpcore.AsyncNetworkStream):
    """A connection before its TLS handshake; it is closed if the handshake fails or is cancelled.

    httpcore would leave it open.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream, clock: Clock) -> None:
        self._stream = stream
        self._clock = clock

    async def start_tls(
        self,
        ssl_context: SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore declares it
    ) -> httpcore.AsyncNetworkStream:
        try:
            stream = await self._stream.start_tls(ssl_context, server_hostname, timeout)
            return _PeerStream(stream, certificates_end(stream.get_extra_info("ssl_object")), self._clock)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self.aclose()
            raise

    async def aclose(self) -> None:
        await self._stream.aclose()


class Dialler(httpcore.AsyncNetworkBackend):
    """Connects to a provider: to the address in its `url` setting, else to port 443 of its name."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self._clock = clock
        self._open = config.federation.mode == "open"
        self._strangers, self._known = Lookups(), Lookups()
        self._urls = {name: urlsplit(peer.url) for name, peer in config.providers.items() if peer.url is not None}
        self._tcp = httpcore.TrioBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore declares it
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the provider `host`."""
        return _StreamBeforeTls(await self._connect(host, port, timeout), self._clock)

    async def _connect(
        self,
        host: str,
        port: int,
        timeout: float | None,  # noqa: ASYNC109  # as above
    ) -> httpcore.AsyncNetworkStream:
        url = self._urls.get(ProviderId(host))
        seconds = timeout or ATTEMPT_SECONDS
        give_up_at = trio.current_time() + seconds
        if url is not None and url.hostname is not None:
            addresses, port = await self._known.resolve(url.hostname, url.port or port, seconds), url.port or port
        elif self._open:
            addresses = _public(await self._strangers.resolve(host, port, seconds))
        else:
            addresses = await self._known.resolve(host, port, seconds)
        failure: Exception = httpcore.ConnectError(NO_ADDRESS)
        tried = some_of(addresses)
        for left, address in zip(range(len(tried), 0, -1), tried, strict=True):
            patience = max(give_up_at - trio.current_time(), LAST_ATTEMPT_SECONDS) / left
            try:
                return await self._tcp.connect_tcp(address, port, patience)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


def some_of(addresses: Sequence[str]) -> list[str]:
    """Return at most MAX_ADDRESSES, in their order; the last one is of the other IP version, if there is one.

    A name may have hundreds of addresses, and one request must not make us connect to each of them.
    """
    first = list(addresses[:MAX_ADDRESSES])
    others = [each for each in addresses[MAX_ADDRESSES:] if (":" in each) != (":" in first[0])]
    if others and all((":" in each) == (":" in first[0]) for each in first):
        first[-1] = others[0]
    return first


def _public(addresses: list[str]) -> list[str]:
    """Return the addresses of a name that may come from a stranger, none if one of them is not public.

    A stranger could otherwise make us connect to hosts in our own network. The refusal is the same as for a name
    without addresses, so it does not reveal which names our resolver knows.
    """
    return addresses if all(map(is_public, addresses)) else []


class Lookups:
    """Looks up names in a bounded number of threads, each name in one thread at a time.

    A thread ends when the resolver answers, also if its caller has given up before. So names whose name servers do not
    answer hold only the threads of this object, and one name holds one thread.
    """

    def __init__(self) -> None:
        self._threads = trio.CapacityLimiter(LOOKUP_THREADS)
        self._names: WeakValueDictionary[str, _OneName] = WeakValueDictionary()

    async def resolve(self, host: str, port: int, seconds: float) -> list[str]:
        """Return the addresses of a name, [] if it has none; raise `httpcore.ConnectTimeout`."""
        with suppress(ValueError):
            return [str(ipaddress.ip_address(host))]
        name = self._names.get(host)
        if name is None:
            name = self._names[host] = _OneName(self._threads)
        ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found: list[Any] = []
        with trio.move_on_after(seconds) as waiting, suppress(OSError, UnicodeError):
            found = await trio.to_thread.run_sync(
                ask, abandon_on_cancel=True, limiter=cast("trio.CapacityLimiter", name)
            )
        if waiting.cancelled_caught:
            raise httpcore.ConnectTimeout(NO_ADDRESS)
        return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class _OneName:
    """Limits the look-ups of one name to one at a time; that one also takes one of the threads for all names."""

    def __init__(self, threads: trio.CapacityLimiter) -> None:
        self._threads = threads
        self._one = trio.CapacityLimiter(1)

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        await self._one.acquire_on_behalf_of(borrower)
        try:
            await self._threads.acquire_on_behalf_of(borrower)
        except BaseException:
            self._one.release_on_behalf_of(borrower)
            raise

    def release_on_behalf_of(self, borrower: object) -> None:
        self._threads.release_on_behalf_of(borrower)
        self._one.release_on_behalf_of(borrower)
