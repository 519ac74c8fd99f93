"""The listeners of a provider: what each serves, at which address, and whom it admits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Final

import attrs

from mimids.ds.limits.rates import Rate, Rates
from mimids.ds.services import Services
from mimids.ds.terms.offered import OfferedTerms
from mimids.http.api.admission import Authenticator
from mimids.http.api.asgi import application
from mimids.http.api.devices import DEVICES
from mimids.http.api.endpoints import AnyEndpoint, Listener
from mimids.http.api.operator import HOSTS, OPERATOR
from mimids.http.api.operator_socket import OPERATOR_SOCKET
from mimids.http.api.providers import PROVIDERS
from mimids.http.api.public import PUBLIC
from mimids.http.api.table import Admit, Table
from mimids.http.console.endpoints import CONSOLE
from mimids.http.header_names import ARRANGEMENT
from mimids.http.server.connection import ASGIApp, ConnectionLimits
from mimids.http.server.listener import Bind
from mimids.http.server.tls import Pair, ServerTls, Trust
from mimids.values import Caller, Device, Follower
from mimids.wire.ids import ProviderId

SOCKET: Final = "operator-socket"
PROXY_MODE: Final = 0o660  # of the client listener's Unix socket: a proxy runs as another user in the same group


@attrs.frozen
class ListenerSpec:
    """A listener that is not open yet: its address and its application."""

    bind: Bind
    app: ASGIApp


def make_app(services: Services, endpoints: Iterable[AnyEndpoint], *, hosts: frozenset[str] | None = None) -> ASGIApp:
    """Return the ASGI application for these endpoints; with `hosts`, it refuses any other Host header."""
    config = services.config
    return application(
        Table(
            endpoints,
            services,
            limits=attrs.asdict(config.limits),
            admit=_admission(services),
            telemetry=services.telemetry,
            body_seconds=config.limits.body_seconds,
            stamp=partial(_revision_header, services.offered_terms),
            demand=partial(_require_arrangement, services.offered_terms),
            hosts=hosts,
        )
    )


def _admission(services: Services) -> Admit:
    config = services.config
    authenticator = Authenticator(config.provider, config.federation, services.devices.authenticate)
    per_minute = config.limits.device_requests_per_minute
    rates = Rates(Rate("device_requests_per_minute", per_minute / 60, per_minute))

    async def admit(kind: type[Caller], headers: Mapping[str, str], names: frozenset[ProviderId] | None) -> Caller:
        caller = await authenticator.admit(kind, headers, names)
        if isinstance(caller, Device):
            rates.take(caller.row, services.clock.now())
        elif isinstance(caller, Follower):
            await services.offered_terms.load(caller.provider)
        return caller

    return admit


def _revision_header(offered_terms: OfferedTerms, caller: Caller) -> Sequence[tuple[bytes, bytes]]:
    """Return the header with the revision of our terms, for answers to providers (semantics: terms-and-reports)."""
    revision = offered_terms.revision(caller.provider) if isinstance(caller, Follower) else None
    return () if revision is None else ((ARRANGEMENT.encode(), b"%d" % revision),)


def _require_arrangement(offered_terms: OfferedTerms, caller: Caller, endpoint: AnyEndpoint) -> None:
    if isinstance(caller, Follower) and not endpoint.open_without_arrangement:
        offered_terms.require(caller.provider)


def make_listeners(services: Services) -> dict[str, ListenerSpec]:
    """Return the listeners of a provider by name; raise `CertificateFileError` if a file cannot be used."""
    config = services.config
    listen, tls = config.listen, config.tls
    limits = ConnectionLimits(
        connections=listen.connections, message_bytes=config.limits.frame_bytes, send_seconds=listen.stall_seconds
    )
    pair = Pair(tls.certificate, tls.private_key)
    trust = Trust(tls.trust, {name: peer.trust for name, peer in config.providers.items() if peer.trust is not None})
    client_tls = None if listen.client_is_plain else ServerTls(pair)
    operator = [row for row in (*OPERATOR, *CONSOLE) if row.name != "metrics" or config.metrics.enabled]
    public, client, loopback = Listener.PUBLIC.value, Listener.CLIENT.value, Listener.OPERATOR.value
    return {
        public: ListenerSpec(
            Bind(public, str(listen.public), ServerTls(pair, clients=trust), limits),
            make_app(services, (*PUBLIC, *PROVIDERS)),
        ),
        client: ListenerSpec(
            Bind(client, str(listen.client), client_tls, limits, unix_mode=PROXY_MODE), make_app(services, DEVICES)
        ),
        loopback: ListenerSpec(
            Bind(loopback, str(listen.operator), None, limits), make_app(services, operator, hosts=HOSTS)
        ),
        SOCKET: ListenerSpec(
            Bind(SOCKET, f"unix:{config.operator_socket}", None, limits), make_app(services, OPERATOR_SOCKET)
        ),
    }
