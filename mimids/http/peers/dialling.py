"""Connections to other providers: which address a provider's name leads to.

In open federation a name may come from a stranger. Then every address that it resolves to must be public, and we
connect to the addresses that were checked.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol, cast
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import trio

from mimids.config import Config
from mimids.http.peers.addresses import is_public
from mimids.http.server.shares import RESERVE, SHARE, Shares
from mimids.owners import WORKING_FOR, Owner
from mimids.wire.ids import ProviderId

HTTPS_PORT: Final = 443
LAST_ATTEMPT_SECONDS: Final = 1  # for all addresses that were not tried when `connect_seconds` are over
MAX_ADDRESSES: Final = 4  # addresses of one name that we try for one request
LOOKUP_THREADS: Final = 32  # for names from strangers; names in the configuration have as many of their own
LOOKUPS_OF_ONE: Final = LOOKUP_THREADS // SHARE  # for each caller; all jobs of this server together count as one caller
LOOKUPS_RESERVED: Final = LOOKUP_THREADS // RESERVE  # reserved for callers that occupy no thread
JOBS: Final = "jobs"
NO_ADDRESS: Final = "the name does not resolve, or not all of its addresses are public"


class CannotConnect(Exception):
    """A provider cannot be connected to, because of its name, its addresses, TLS or its certificate."""


class Connects(Protocol):
    """Opens the sockets of a pool's connections."""

    @property
    def seconds(self) -> float:
        """Return how long connecting may take."""
        ...

    async def connect(self, provider: ProviderId, /) -> socket.socket:
        """Return a connected, non-blocking socket; raise `CannotConnect` if that fails."""
        ...


class Dialler:
    """Connects to a provider: to the address in its `url` setting, else to port 443 of its name."""

    def __init__(self, config: Config) -> None:
        self._federation = config.federation
        self._strangers, self._known = Lookups(), Lookups()
        self._urls = {name: urlsplit(peer.url) for name, peer in config.providers.items() if peer.url is not None}

    @property
    def seconds(self) -> int:
        """Return how long connecting may take."""
        return self._federation.connect_seconds

    async def connect(self, provider: ProviderId) -> socket.socket:
        """Return a connected, non-blocking socket; raise `CannotConnect` if that fails."""
        give_up_at = trio.current_time() + self.seconds
        url = self._urls.get(provider)
        if url is not None and url.hostname is not None:
            port = url.port or HTTPS_PORT
            addresses = await self._known.resolve(url.hostname, port, self.seconds)
        else:
            port = HTTPS_PORT
            open_ = self._federation.mode == "open"
            names = self._strangers if open_ else self._known
            addresses = await names.resolve(provider, port, self.seconds)
            if open_:
                addresses = public_only(addresses)
        return await connect_to_one(addresses, port, give_up_at)


async def connect_to_one(addresses: Sequence[str], port: int, give_up_at: float) -> socket.socket:
    """Return a socket that is connected to one of the addresses; raise `CannotConnect` if none can be reached.

    `give_up_at` is a time by trio's clock.
    """
    failure = CannotConnect(NO_ADDRESS)
    tried = some_of(addresses)
    for left, address in zip(range(len(tried), 0, -1), tried, strict=True):
        seconds = max(give_up_at - trio.current_time(), LAST_ATTEMPT_SECONDS) / left
        try:
            return await connect_tcp(address, port, seconds)
        except CannotConnect as error:
            failure = error
    raise failure


async def connect_tcp(address: str, port: int, seconds: float) -> socket.socket:
    """Return a non-blocking socket that is connected to an address; raise `CannotConnect` if that fails."""
    try:
        tcp = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:  # too many open files
        raise CannotConnect(error.strerror) from error
    try:
        tcp.setblocking(False)
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        failure = tcp.connect_ex((address, port))
        if failure == errno.EINPROGRESS:
            with trio.move_on_after(seconds) as waiting:
                await trio.lowlevel.wait_writable(tcp)
            failure = tcp.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if waiting.cancelled_caught:
                failure = errno.ETIMEDOUT
        if failure:
            raise CannotConnect(os.strerror(failure))
    except BaseException:
        tcp.close()
        raise
    return tcp


def some_of(addresses: Sequence[str]) -> list[str]:
    """Return the first MAX_ADDRESSES addresses.

    If all of these have one IP version, replace the last by an address of the other version. A name may have hundreds
    of addresses, and one request must not make us connect to each of them.
    """
    first = list(addresses[:MAX_ADDRESSES])
    others = [each for each in addresses[MAX_ADDRESSES:] if (":" in each) != (":" in first[0])]
    if others and all((":" in each) == (":" in first[0]) for each in first):
        first[-1] = others[0]
    return first


def public_only(addresses: list[str]) -> list[str]:
    """Return the addresses of a name that may come from a stranger; return no addresses if any of them is not public.

    Otherwise a stranger could make us connect to hosts in our own network. The refusal is the same as for a name
    without addresses, so it does not reveal which names our resolver knows.
    """
    return addresses if all(map(is_public, addresses)) else []


class Lookups:
    """Looks up names in a bounded number of threads, each name in one thread at a time.

    A thread ends only when the resolver answers, even if its caller has given up. So names whose name servers do not
    answer occupy only threads of this object: one thread for each name, and at most a share of the threads for each
    caller.
    """

    def __init__(self) -> None:
        self._threads = _Threads()
        self._names: WeakValueDictionary[str, _OneName] = WeakValueDictionary()

    async def resolve(self, host: str, port: int, seconds: float) -> list[str]:
        """Return the addresses of a name, [] if it has none; raise `CannotConnect` if the look-up takes too long."""
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
            raise CannotConnect(NO_ADDRESS)
        return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class _Threads:
    """Counts the threads of each caller."""

    def __init__(self) -> None:
        self._shares = Shares(LOOKUP_THREADS, share=LOOKUPS_OF_ONE, reserve=LOOKUPS_RESERVED, little=1)
        self._room = trio.lowlevel.ParkingLot()

    async def take(self, caller: Owner) -> None:
        """Wait until a caller may use one more thread."""
        while not self._shares.has_room(caller):
            await self._room.park()
        self._shares.take(caller)

    def give_back(self, caller: Owner) -> None:
        """Count that a caller uses one thread less."""
        self._shares.give_back(caller)
        self._room.unpark_all()


class _OneName:
    """Allows one look-up of a name at a time.

    The look-up also needs one of the threads that all names share.
    """

    def __init__(self, threads: _Threads) -> None:
        self._threads = threads
        self._one = trio.CapacityLimiter(1)
        self._caller: Owner = None  # the caller of the look-up that runs

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        await self._one.acquire_on_behalf_of(borrower)
        caller = WORKING_FOR.get()
        if caller is None:
            caller = JOBS
        try:
            await self._threads.take(caller)
        except BaseException:
            self._one.release_on_behalf_of(borrower)
            raise
        self._caller = caller

    def release_on_behalf_of(self, borrower: object) -> None:
        self._threads.give_back(self._caller)
        self._one.release_on_behalf_of(borrower)
