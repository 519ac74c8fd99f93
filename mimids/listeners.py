"""The listeners of a provider: what each serves, at which address, and whom it admits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Final
from urllib.parse import urlsplit

import attrs

from mimids.config import Config
from mimids.ds.limits.rates import ConfiguredRate
from mimids.ds.services import Services
from mimids.ds.terms.offered import OfferedTerms
from mimids.http.api.admission import Authenticator, CallerRates
from mimids.http.api.asgi import application
from mimids.http.api.cors import NO_PAGES, Cors
from mimids.http.api.devices import DEVICES
from mimids.http.api.endpoints import AnyEndpoint, Listener
from mimids.http.api.operator import HOSTS, OPERATOR
from mimids.http.api.operator_socket import OPERATOR_SOCKET
from mimids.http.api.providers import PROVIDERS
from mimids.http.api.public import PUBLIC
from mimids.http.api.table import Admit, Table
from mimids.http.console.mount import with_console
from mimids.http.header_names import ARRANGEMENT
from mimids.http.peers.answers import named_revision
from mimids.http.server.buffers import Buffers
from mimids.http.server.connection import ASGIApp
from mimids.http.server.listener import Bind
from mimids.http.server.listener_state import ConnectionLimits
from mimids.http.server.messages import DirectApp
from mimids.http.server.tls import Pair, ServerTls, Trust
from mimids.values import Caller, Follower
from mimids.wire.ids import ProviderId

SOCKET: Final = "operator-socket"
PROXY_MODE: Final = 0o660  # of the client listener's Unix socket: a proxy runs as another user in the same group


@attrs.frozen
class ListenerSpec:
    """A listener that is not open yet: its address and its application."""

    bind: Bind
    app: ASGIApp


def make_app(
    services: Services,
    endpoints: Iterable[AnyEndpoint],
    *,
    hosts: frozenset[str] | None = None,
    cors: Cors = NO_PAGES,
    rates: CallerRates | None = None,
) -> DirectApp:
    """Return the ASGI application for these endpoints; with `hosts`, it refuses any other Host header.

    `rates` are shared by the applications of several listeners.
    """
    config, rates = services.config, rates or _caller_rates(services)
    return application(
        Table(
            endpoints,
            services,
            limits=config.limits,
            admit=_admission(services, rates),
            telemetry=services.telemetry,
            body_seconds=config.limits.body_seconds,
            stamp=partial(_revision_header, services.offered_terms),
            demand=partial(_require_arrangement, services.offered_terms),
            pace=rates.wait,
            owe=rates.owe,
            hosts=hosts,
            cors=cors,
        )
    )


def _caller_rates(services: Services) -> CallerRates:
    requests = ConfiguredRate.of(services.config.limits, "device_requests_per_minute")
    return CallerRates(requests, services.clock, services.telemetry)


def _admission(services: Services, rates: CallerRates) -> Admit:
    config = services.config
    authenticator = Authenticator(config.provider, config.federation, services.devices.authenticate)

    async def admit(kind: type[Caller], headers: Mapping[str, str], names: frozenset[ProviderId] | None) -> Caller:
        caller = await authenticator.admit(kind, headers, names)
        rates.take(caller)
        if isinstance(caller, Follower):
            await services.offered_terms.load(caller.provider)
            services.callers.note(caller.provider)
            if (revision := named_revision(headers)) is not None:
                services.accepted_terms.note_revision(caller.provider, revision)
        return caller

    return admit


def _revision_header(offered_terms: OfferedTerms, caller: Caller) -> Sequence[tuple[bytes, bytes]]:
    """Return the header with the revision of our terms, for answers to providers (semantics: terms-and-reports)."""
    revision = offered_terms.revision(caller.provider) if isinstance(caller, Follower) else None
    return () if revision is None else ((ARRANGEMENT.encode(), b"%d" % revision),)


def _require_arrangement(offered_terms: OfferedTerms, caller: Caller, endpoint: AnyEndpoint) -> None:
    if isinstance(caller, Follower) and not endpoint.open_without_arrangement:
        offered_terms.require(caller.provider)


def largest_body(config: Config) -> int:
    """Return how many octets the largest request body may have."""
    return max(config.limits.push_bytes, config.limits.max_body_bytes)


def make_listeners(services: Services) -> dict[str, ListenerSpec]:
    """Return the listeners of a provider by name; raise `CertificateFileError` if a file cannot be used."""
    config = services.config
    listen, tls = config.listen, config.tls
    limits = ConnectionLimits(
        connections=listen.connections, message_bytes=config.limits.frame_bytes, send_seconds=listen.stall_seconds
    )
    buffers = Buffers(listen.buffered_bytes, largest=largest_body(config))
    pair = Pair(tls.certificate, tls.private_key)
    hosts = frozenset({config.provider, urlsplit(listen.public_url).hostname or config.provider})
    trust = Trust(tls.trust, {name: peer.trust for name, peer in config.providers.items() if peer.trust is not None})
    client_tls = None if listen.client_is_plain else ServerTls(pair)
    operator = [row for row in OPERATOR if row.name != "metrics" or config.metrics.enabled]
    rates = _caller_rates(services)
    services.shared_rates.add("callers", *rates.all)
    public, client, loopback = Listener.PUBLIC.value, Listener.CLIENT.value, Listener.OPERATOR.value
    return {
        public: ListenerSpec(
            Bind(public, str(listen.public), ServerTls(pair, clients=trust), limits, buffers=buffers),
            make_app(services, (*PUBLIC, *PROVIDERS), hosts=hosts, rates=rates),
        ),
        client: ListenerSpec(
            Bind(client, str(listen.client), client_tls, limits, unix_mode=PROXY_MODE, buffers=buffers),
            make_app(services, DEVICES, cors=Cors(listen.web_origins), rates=rates),
        ),
        loopback: ListenerSpec(
            Bind(loopback, str(listen.operator), None, limits),
            with_console(make_app(services, operator, hosts=HOSTS), services),
        ),
        SOCKET: ListenerSpec(
            Bind(SOCKET, f"unix:{config.operator_socket}", None, limits), make_app(services, OPERATOR_SOCKET)
        ),
    }
