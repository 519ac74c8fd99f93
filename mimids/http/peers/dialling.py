"""Connections to other providers: which address a provider's name leads to.

In open federation a name may come from a stranger. Then every address that it resolves to must be public, and we
connect to the addresses that were checked.
"""

from __future__ import annotations

import ipaddress
import socket
from ssl import SSLContext
from typing import Any, Final
from urllib.parse import urlsplit

import httpcore
import trio

from mimids.config import Config
from mimids.errors import ProviderNotAllowed
from mimids.wire.ids import ProviderId

ATTEMPT_SECONDS: Final = 5  # for all addresses of a name together, if the caller names no time
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052


class _StreamBeforeTls(httpcore.AsyncNetworkStream):
    """A connection before its TLS handshake; it is closed if the handshake fails or is cancelled.

    httpcore would leave it open.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream

    async def start_tls(
        self,
        ssl_context: SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore declares it
    ) -> httpcore.AsyncNetworkStream:
        try:
            return await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self.aclose()
            raise

    async def aclose(self) -> None:
        await self._stream.aclose()


class Dialler(httpcore.AsyncNetworkBackend):
    """Connects to a provider: to the address in its `url` setting, else to port 443 of its name."""

    def __init__(self, config: Config) -> None:
        self._open = config.federation.mode == "open"
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
        return _StreamBeforeTls(await self._connect(host, port, timeout))

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
        addresses = await public_addresses(host, port)
        for address in addresses[:-1]:
            try:
                return await self._tcp.connect_tcp(address, port, (timeout or ATTEMPT_SECONDS) / len(addresses))
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._tcp.connect_tcp(addresses[-1], port, timeout)


async def public_addresses(host: str, port: int) -> list[str]:
    """Resolve a name that may come from a stranger.

    Raises `ProviderNotAllowed` if any address is not public: a stranger could otherwise make us connect to hosts in
    our own network. Callers connect to these addresses and do not resolve the name again.
    """
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise httpcore.ConnectError(str(error)) from error
    addresses = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))
    if not addresses or not all(is_public(address) for address in addresses):
        raise ProviderNotAllowed("its name resolves to no address, or to one that is not public")
    return addresses


def is_public(address: str) -> bool:
    """Tell whether an address is a unicast address of the public internet."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.sixtofour is not None or parsed.teredo is not None:  # tunnels to IPv4; no servers are there
            return False
        if parsed.ipv4_mapped is not None or parsed in _NAT64:  # these stand for an IPv4 address
            parsed = ipaddress.IPv4Address(parsed.packed[-4:])
    return parsed.is_global and not parsed.is_multicast
