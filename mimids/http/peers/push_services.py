"""Calls to push services (RFC 8030): `ds.ports.PushServices`.

A device chooses the endpoint of its subscription, so the endpoint is treated like the name of a stranger: all addresses
of its host must be public, unless the operator has listed its origin. Connections, look-ups and trust are separate from
those for other providers. No redirect is followed, and nothing is logged.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

from mimids.config import Config
from mimids.ds.ports import Clock, PushAnswer
from mimids.errors import PeerUnavailable
from mimids.http.peers.connection import connect
from mimids.http.peers.dialling import CannotConnect, Lookups, connect_to_one, public_only
from mimids.http.peers.exchange import AnswerTooLarge, BrokenConnection, peer_request
from mimids.http.peers.pools import Pools
from mimids.http.peers.problems import retry_after
from mimids.http.server.tls import ALPN, CertificateFileError, trust_file
from mimids.ohttp.date import read_date
from mimids.owners import WORKING_FOR
from mimids.web_push.subscription import EndpointUrl, origins, parse_endpoint
from mimids.web_push.vapid import TOKEN_SECONDS
from mimids.wire.ids import ProviderId

CALL_SECONDS: Final = 10.0  # for connecting, the request and its answer
ANSWER_OCTETS: Final = 4096  # only the status and Retry-After of an answer are used
KEPT: Final = 64  # connections without a call
TOKEN_REFUSED: Final = frozenset({400, 401, 403})  # a token that has expired, or is not valid yet
CLOCKS_DIFFER_SECONDS: Final = TOKEN_SECONDS // 2
OCTET_STREAM: Final = "application/octet-stream"


def _differs(date: str, now_seconds: float) -> bool:
    """Tell whether the Date of an answer shows that the push service's clock and ours differ by hours."""
    seconds = read_date(date.encode("latin-1", "replace"))
    return seconds is not None and abs(seconds - now_seconds) > CLOCKS_DIFFER_SECONDS


class PushTls:
    """TLS contexts for calls to push services.

    Every context trusts the system's authorities. A context for an origin that the operator listed also trusts the
    authorities of `[tls] trust`.
    """

    def __init__(self, listed: frozenset[str], trust: Path | None) -> None:
        self._listed = listed
        self._trust = trust
        self._contexts: dict[bool, ssl.SSLContext] = {}

    def context(self, authority: str, /) -> ssl.SSLContext:
        """Return the context for a push service; raise `CannotConnect` if the trust file cannot be used."""
        is_listed = f"https://{authority}" in self._listed
        if is_listed not in self._contexts:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = ssl.TLSVersion.TLSv1_2  # not all push services have 1.3
            context.set_default_verify_paths()
            context.set_alpn_protocols(ALPN)
            if is_listed and self._trust is not None:
                try:
                    trust_file(context, self._trust)
                except CertificateFileError as error:
                    raise CannotConnect(str(error)) from error
            self._contexts[is_listed] = context
        return self._contexts[is_listed]

    def reload(self) -> None:
        """Read the files again when they are needed next."""
        self._contexts.clear()


class PushDialler:
    """Connects to push services; a service is named by its host, and by its port unless the port is 443."""

    seconds = CALL_SECONDS

    def __init__(self, listed: frozenset[str]) -> None:
        self._listed = listed
        self._lookups = Lookups()

    async def connect(self, authority: str, /) -> socket.socket:
        """Return a connected, non-blocking socket; raise `CannotConnect` if that fails."""
        give_up_at = trio.current_time() + self.seconds
        endpoint = parse_endpoint(f"https://{authority}/")
        addresses = await self._lookups.resolve(endpoint.host, endpoint.port, self.seconds)
        if endpoint.origin not in self._listed:
            addresses = public_only(addresses)
        return await connect_to_one(addresses, endpoint.port, give_up_at)


class HttpPushServices:
    """Implements `ds.ports.PushServices`."""

    def __init__(self, config: Config, clock: Clock) -> None:
        listed = origins(config.push.endpoints)
        self._clock = clock
        self._tls, self._dialler = PushTls(listed, config.tls.trust), PushDialler(listed)
        self._pools = Pools(self._tls, self._dialler, clock, kept=KEPT)

    async def push(self, endpoint: EndpointUrl, headers: Sequence[tuple[str, str]], body: bytes) -> PushAnswer:
        """Send one push, as `PushServices.push` says; if a kept connection breaks, send the push again on a new one.

        If the service refuses the push, and its clock and ours differ, the reason may be the times in the token that
        names us as sender. That is not a lasting refusal, so `PeerUnavailable` is raised.
        """
        name = ProviderId(endpoint.authority)  # pools know the other side by a name
        request = peer_request(name, "POST", endpoint.path, body, OCTET_STREAM, headers)
        caller = WORKING_FOR.set(endpoint.host)  # a look-up that hangs uses up the share of this service only
        try:
            with trio.fail_after(CALL_SECONDS):
                answer = await self._pools.exchange(request, ANSWER_OCTETS, repeatable=True)
            status, answered = answer.status, answer.headers
        except AnswerTooLarge as error:  # the head of the answer says what became of the push
            status, answered = error.status, error.headers
        except (CannotConnect, BrokenConnection, trio.TooSlowError) as error:
            raise PeerUnavailable from error
        finally:
            WORKING_FOR.reset(caller)
        now = self._clock.now() / 1000
        if status in TOKEN_REFUSED and _differs(answered.get("date", ""), now):
            raise PeerUnavailable("one of the clocks is wrong")
        return PushAnswer(status, retry_after(answered, now) if "retry-after" in answered else 0)

    async def reach(self, endpoint: EndpointUrl) -> None:
        """Connect to a push service and send nothing; raise `PeerUnavailable`, whose cause says why."""
        name = ProviderId(endpoint.authority)
        try:
            with trio.fail_after(CALL_SECONDS):
                connection = await connect(self._dialler, name, self._tls.context(name))
        except (CannotConnect, trio.TooSlowError) as error:
            raise PeerUnavailable from error
        connection.close()

    def reload(self) -> None:
        """Read the trust file again, for new connections."""
        self._pools.reload()

    def close(self) -> None:
        """Close all connections."""
        self._pools.close()
