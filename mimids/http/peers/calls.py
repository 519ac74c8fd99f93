"""Calls to other providers over HTTPS: `ds.ports.PeerTransport`.

No cookies are kept, no redirects followed, no settings read from the environment, and no URLs logged.

A provider is named by its domain only. Its certificate and the Host header must name this domain, even if
`providers.NAME.url` names another address to connect to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import Final

import attrs
import trio

from mimids.config import Config
from mimids.ds.elapsed import PeerDate
from mimids.ds.ports import Clock, RelayedAnswer
from mimids.errors import PeerFailed, PeerUnavailable, ProviderNotAllowed
from mimids.http.header_names import ARRANGEMENT
from mimids.http.media_types import MIMI_DS
from mimids.http.peers.answers import DatedAnswer, HttpAnswer, dated_answer, named_revision, relayed_answer
from mimids.http.peers.dialling import CannotConnect, Dialler
from mimids.http.peers.exchange import AnswerTooLarge, BrokenConnection, PeerRequest, peer_request
from mimids.http.peers.pools import Pools, connections_kept
from mimids.http.peers.problems import describes_us, error_from
from mimids.http.server.shares import RESERVE, Shares
from mimids.http.server.tls import ClientTls, Pair, Trust
from mimids.wire.ids import ProviderId

CALLS: Final = 1024  # calls at a time, to all peers; each call has a connection
CALLS_TO_ONE: Final = 64  # so that one slow peer cannot use up the calls to all others
# Reserved for peers with at most FEW_CALLS calls in flight, so that many slow peers cannot use up all calls.
CALLS_RESERVED: Final = CALLS // RESERVE
FEW_CALLS: Final = 4
WAITS_AT_ONE: Final = 32  # of CALLS_TO_ONE: calls in which the peer waits for news before it answers


@attrs.frozen
class PeerStatistics:
    """The calls in flight, the ended calls by outcome, and the calls that were not made for lack of room."""

    calling: int
    answered: int
    refused: int
    unavailable: int
    crowded_out: int


class HttpPeers:
    """Implements `ds.ports.PeerTransport`; made by `open_peers`."""

    def __init__(self, config: Config, clock: Clock, *, named: ClientTls, nameless: ClientTls) -> None:
        dialler = Dialler(config)
        self._config = config
        self._clock = clock
        kept = connections_kept() // 2  # of each pool
        self._named = Pools(named, dialler, clock, kept=kept)
        self._nameless = Pools(nameless, dialler, clock, kept=kept)
        self._calling = Shares(CALLS, share=CALLS_TO_ONE, reserve=CALLS_RESERVED, little=FEW_CALLS)
        self._waiting: Counter[ProviderId] = Counter()
        self._answered = self._refused = self._unavailable = self._crowded_out = 0
        self._dates: dict[ProviderId, PeerDate] = {}  # only of providers that the configuration or the operator names

    async def call(
        self,
        provider: ProviderId,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        media_type: str = MIMI_DS,
        timeout_seconds: float | None = None,
        wait_seconds: int | None = None,
        on_terms_revision: Callable[[int], None] | None = None,
        terms_revision: int | None = None,
    ) -> DatedAnswer:
        """Exchange one request over mutual TLS, as `PeerTransport.call` says; an answer has at most max_body_bytes."""
        if timeout_seconds is None:
            timeout_seconds = self._config.federation.answer_seconds
        headers = [("from", f"mimi@{self._config.provider}")]
        if terms_revision is not None:
            headers.append((ARRANGEMENT.lower(), str(terms_revision)))
        if wait_seconds is not None:
            headers.append(("prefer", f"wait={wait_seconds}"))
            timeout_seconds += wait_seconds
        with self._wait(provider) if wait_seconds else nullcontext():
            answer = await self._exchange(
                self._named,
                peer_request(provider, method, path, body, media_type, headers),
                seconds=timeout_seconds,
                octets=self._config.limits.max_body_bytes,
                repeatable=True,  # like every request between providers
            )
        if "date" in answer.headers and (provider in self._config.providers or self._config.federation.names(provider)):
            self._dates[provider] = PeerDate(answer.headers["date"], self._clock.running())
        revision = named_revision(answer.headers)
        if revision is not None and on_terms_revision is not None:
            on_terms_revision(revision)
        return self._accepted(answer)

    def _accepted(self, answer: HttpAnswer) -> DatedAnswer:
        """Count an answer and return it; raise the error that an answer with a status outside 2xx stands for."""
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
            peer_request(provider, method, path, body, media_type),
            seconds=self._config.federation.answer_seconds,
            octets=self._config.limits.ohttp_bytes,
            repeatable=False,  # RFC 9458 section 6.5.1: a relay MUST NOT retry
        )
        if answer.status >= 300 and describes_us(answer.status, answer.headers, answer.body):
            self._refused += 1
            raise PeerFailed(f"the provider answered {answer.status}")
        self._answered += 1
        return relayed_answer(answer)

    async def reload(self) -> None:
        """Read renewed certificate and trust files, for connections made from now on.

        Raises `tls.CertificateFileError`; the old files stay in use then. If a trust file was removed, its certificates
        are no longer trusted.
        """
        try:
            self._named.reload()
        finally:
            self._nameless.reload()

    def close(self) -> None:
        """Close all connections."""
        self._named.close()
        self._nameless.close()

    def dates(self) -> Mapping[ProviderId, PeerDate]:
        """Return the last Date of each provider that the configuration or the operator names."""
        return self._dates

    def statistics(self) -> PeerStatistics:
        """Return the counts so far."""
        return PeerStatistics(self._calling.used, self._answered, self._refused, self._unavailable, self._crowded_out)

    @contextmanager
    def _wait(self, provider: ProviderId) -> Iterator[None]:
        """For the block, count a call whose answer waits for news; raise `PeerUnavailable` if there are too many."""
        if self._waiting[provider] >= WAITS_AT_ONE:
            raise self._crowded("too many waiting requests to this provider; try again later")
        self._waiting[provider] += 1
        try:
            yield
        finally:
            self._waiting[provider] -= 1
            if not self._waiting[provider]:
                del self._waiting[provider]

    def _crowded(self, detail: str) -> PeerUnavailable:
        self._crowded_out += 1
        return PeerUnavailable(detail, retry_after=1)

    async def _exchange(
        self, pools: Pools, request: PeerRequest, *, seconds: float, octets: int, repeatable: bool
    ) -> HttpAnswer:
        provider = request.provider
        if not self._config.federation.allows(provider, us=self._config.provider):
            raise ProviderNotAllowed
        if not self._calling.has_room(provider):
            raise self._crowded("too many calls to this provider, or to all providers, are in flight; try again later")
        self._calling.take(provider)
        try:
            with trio.fail_after(seconds):
                return await pools.exchange(request, octets, repeatable=repeatable)
        except AnswerTooLarge as error:
            raise PeerFailed("the answer is too large") from error
        except (CannotConnect, BrokenConnection, trio.TooSlowError) as error:
            self._unavailable += 1
            raise PeerUnavailable from error
        finally:
            self._calling.give_back(provider)


@asynccontextmanager
async def open_peers(config: Config, clock: Clock) -> AsyncIterator[HttpPeers]:
    """Yield an `HttpPeers`, which makes calls to other providers; close its connections at the end of the block.

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
        peers.close()
