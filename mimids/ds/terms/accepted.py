"""The terms that other hubs offer us, and the terms that we accepted (semantics: terms-and-reports).

Every answer of a hub, and each of its pushes and Welcomes, names the revision of the terms that it offers us. When the
revision is new, the job fetches the terms. It accepts them at once or, if so configured, when the operator accepts
them, and tells the hub. Accepted terms are in force: this server refuses requests of our own users that break them.
Terms are also fetched every RENEW_SECONDS. Otherwise we might never learn of new terms. For example, the old terms may
make us refuse every request of our users to a hub; if the hub sends us nothing either, no answer names the new
revision.

Terms are *offered* once they are fetched, *accepted* once they are in force, and *confirmed* once the hub knows of the
acceptance. All of this is stored; the copy in memory is only a cache. If a hub names a revision that we do not have, we
fetch it again, and the job tells every hub that has not confirmed our acceptance.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import attrs
import trio

from mimids.config import Config
from mimids.ds.early_retries import EarlyRetries
from mimids.ds.limits.call_slots import CallSlots, CallTooSlow
from mimids.ds.lru import LeastRecentlyUsed
from mimids.ds.notifier import Notifier
from mimids.ds.peer_answers import AnswerDecoder, expect_empty
from mimids.ds.ports import Clock, Peers
from mimids.ds.terms.hub_terms import HubTerms
from mimids.errors import ArrangementOutdated, MimiError, NotFound, PeerFailed, TooLarge
from mimids.store import arrangements, providers
from mimids.store.arrangements import AcceptedTermsRow
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds
from mimids.wire.ids import ProviderId

TOPIC: Final = "arrangements"  # wakes the job
RETRY_SECONDS: Final = 30.0  # after a hub refused, or could not be reached
FETCH_INTERVAL_SECONDS: Final = 1.0  # between two fetches from one hub, however often its terms change
RENEW_SECONDS: Final = 600.0  # between two fetches from a hub that names no new revision
ACCEPT_ATTEMPTS: Final = 3  # how often to try if terms change while we accept them
QUICK_HUBS: Final = 8  # hubs that are asked at the same time, in addition to SLOW_HUBS slow ones
SLOW_HUBS: Final = 4
HUBS_REMEMBERED: Final = 10_000
TERMS_OCTETS: Final = 4 * 1024 * 1024  # of a hub's JSON


class AcceptedTerms:
    """The terms of other hubs; `run` is the job that fetches and accepts them and tells the hubs."""

    def __init__(
        self, config: Config, store: Store, clock: Clock, peers: Peers, notifier: Notifier, decoder: AnswerDecoder
    ) -> None:
        self._config = config
        self._store = store
        self._clock = clock
        self._peers = peers
        self._notifier = notifier
        self._decoder = decoder
        self._generation = 0  # counts the calls of `forget`
        self._known: dict[ProviderId, AcceptedTermsRow] = {}  # the rows of the store
        self._in_force: dict[ProviderId, HubTerms] = {}
        self._named: LeastRecentlyUsed[ProviderId, int] = LeastRecentlyUsed(HUBS_REMEMBERED)  # the newest revisions
        self._renewals: dict[ProviderId, trio.Lock] = {}
        self._next_attempt: dict[ProviderId, Milliseconds] = {}  # by the monotonic clock
        self._renew_at: dict[ProviderId, Milliseconds] = {}  # by the monotonic clock, for hubs in `_known`
        self._early = EarlyRetries(clock, partial(notifier.notify, TOPIC))
        self._busy: set[ProviderId] = set()
        self._slots = CallSlots(quick_calls=QUICK_HUBS, slow_calls=SLOW_HUBS)
        store.when_changed(self.forget, "accepted_terms")

    def forget(self) -> None:
        """Make the job read the stored terms again; call this after a commit that changed them."""
        self._generation += 1
        self._notifier.notify(TOPIC)

    def heard(self, provider: ProviderId) -> None:
        """Fetch the terms of a provider that has called us, without waiting for the end of its back-off."""
        self._early.heard(provider)

    def note_revision(self, hub: ProviderId, revision: int) -> None:
        """Remember the revision that a hub's answer or request named; wake the job if we do not have these terms."""
        is_new = self._named.peek(hub) != revision
        self._named.put(hub, revision)
        if is_new and self._is_new(hub):
            soon = self._time_after(FETCH_INTERVAL_SECONDS)  # the hub has just answered: end a longer back-off
            if hub in self._next_attempt:
                self._next_attempt[hub] = min(self._next_attempt[hub], soon)
            self._notifier.notify(TOPIC)

    def in_force(self, hub: ProviderId) -> HubTerms | None:
        """Return the terms that we accepted from a hub; None if we accepted none."""
        return self._in_force.get(hub)

    def check_sizes(self, hub: ProviderId, sizes: Mapping[str, int]) -> None:
        """Raise `TooLarge` if an object has more octets than the hub's terms allow; `sizes` is by limit."""
        terms = self._in_force.get(hub)
        for limit, octets in sizes.items():
            allowed = 0 if terms is None else terms.sizes.get(limit, 0)
            if allowed and octets > allowed:
                raise TooLarge(limit, octets)

    async def renew(self, hub: ProviderId) -> bool:
        """Fetch a hub's terms, accept them if the configuration says so, and tell the hub.

        Returns whether the hub has confirmed that we accept its current terms. Raises the hub's refusal, and
        `PeerUnavailable` or `PeerFailed`.
        """
        async with self._renewals.setdefault(hub, trio.Lock()):
            for _ in range(ACCEPT_ATTEMPTS):
                terms = await self._fetch(hub)
                known = await self._store_offer(terms)
                self._remember(known, await self._read_accepted(known))
                if known.accepted_revision != terms.revision:
                    return False  # the operator has to accept them
                if known.acknowledged or await self._tell_hub(known):
                    return True
            raise PeerFailed("the hub's terms change faster than they can be accepted")

    # --- the job ------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Load the stored terms; then fetch new terms, and tell the hubs that have not confirmed, until cancelled."""
        with self._notifier.listen(TOPIC) as waiter:
            await self._load()
            task_status.started()
            generation = self._generation
            async with trio.open_nursery() as renewals:
                while True:
                    if generation != self._generation:
                        generation = self._generation
                        await self._load()
                    idle = self._start_renewals(renewals)
                    await waiter.wait_at_most(self._clock, idle)

    def _start_renewals(self, renewals: trio.Nursery) -> float:
        """Start the renewals that are due; return the seconds until the next one is due."""
        now = self._clock.running()
        self._next_attempt.update(dict.fromkeys(self._early.take_due(), now))
        outdated = [hub for hub in self._outdated_hubs() if hub not in self._busy]
        for hub in outdated:
            if self._next_attempt.get(hub, now) <= now:
                self._busy.add(hub)
                self._early.begin(hub)
                renewals.start_soon(self._renew_once, hub)
        waits = [self._next_attempt[hub] - now for hub in outdated if hub not in self._busy]
        waits += [at - now for hub, at in self._renew_at.items() if at > now and hub not in self._busy]
        return min([RENEW_SECONDS, *(each / 1000 for each in waits), *self._early.seconds_left()])

    async def _renew_once(self, hub: ProviderId) -> None:
        soon = self._time_after(FETCH_INTERVAL_SECONDS)  # counted from the start of this fetch
        try:
            async with self._slots.slot(hub, TERMS_OCTETS) as slot:
                await slot.call(partial(self.renew, hub))
            self._next_attempt[hub] = soon
        except CallTooSlow:  # cancelled, because calls to other hubs waited
            self._next_attempt[hub] = self._time_after(FETCH_INTERVAL_SECONDS)
        except MimiError as error:  # unreachable, refusing, or without valid terms
            self._next_attempt[hub] = self._time_after(RETRY_SECONDS)
            self._early.failed(hub, error)
        finally:
            self._busy.discard(hub)
            self._early.end(hub)
            self._notifier.notify(TOPIC)

    def _outdated_hubs(self) -> list[ProviderId]:
        """Return the hubs whose terms must be fetched, and the hubs that have not confirmed our acceptance."""
        now = self._clock.running()
        to_fetch = [hub for hub in self._named if self._is_new(hub)]
        to_fetch += [hub for hub, at in self._renew_at.items() if at <= now and hub not in to_fetch]
        to_tell = [
            hub
            for hub, known in self._known.items()
            if known.accepted_revision == known.offered_revision and not known.acknowledged
        ]
        return [*to_fetch, *(hub for hub in to_tell if hub not in to_fetch)]

    def _is_new(self, hub: ProviderId) -> bool:
        """Tell whether a hub named a revision that we do not have."""
        known = self._known.get(hub)
        return known is None or known.offered_revision != self._named.peek(hub)

    def _time_after(self, seconds: float) -> Milliseconds:
        return Milliseconds(self._clock.running() + int(seconds * 1000))

    async def _load(self) -> None:
        before = dict(self._known)
        for known in await self._store.read(arrangements.every_accepted):
            accepted = await self._read_accepted(known)
            if self._known.get(known.hub) is before.get(known.hub):  # else newer terms were stored meanwhile
                self._remember(known, accepted)

    async def _read_accepted(self, known: AcceptedTermsRow) -> HubTerms | None:
        """Return the terms of a row that are in force; None if no terms were accepted."""
        before = self._known.get(known.hub)
        if known.accepted is None or (before is not None and before.accepted == known.accepted):
            return self._in_force.get(known.hub)
        read = partial(HubTerms.decode, hub=known.hub, stored=True)
        return await self._decoder.read_by(read, known.accepted.encode(), "terms", of=known.hub)

    def _remember(self, known: AcceptedTermsRow, accepted: HubTerms | None) -> None:
        self._known[known.hub] = known
        self._renew_at.setdefault(known.hub, self._time_after(RENEW_SECONDS))
        if accepted is not None:
            self._in_force[known.hub] = accepted

    # --- one renewal --------------------------------------------------------------------------------------------

    async def _fetch(self, hub: ProviderId) -> HubTerms:
        if hub in self._renew_at:
            self._renew_at[hub] = self._time_after(RENEW_SECONDS)
        answer = await self._peers.call(hub, "GET", "/ds/v1/arrangement")
        fault = "the hub's terms are not valid"
        if len(answer.body) > TERMS_OCTETS:
            raise PeerFailed(fault)
        terms = await self._decoder.read_by(partial(HubTerms.decode, hub=hub), answer.body, fault, of=hub)
        self._named.put(hub, terms.revision)
        return terms

    async def _store_offer(self, terms: HubTerms) -> AcceptedTermsRow:
        """Store a hub's terms; accept them if acceptance is automatic, or if only their revision has changed.

        A hub may send much, and often, so its terms are compared in a worker thread and not in the transaction.
        """
        before = await self._store.read(partial(_find_accepted, terms.hub))
        change = await self._decoder.run(partial(_Change.between, before, terms), of=terms.hub)

        def store(tx: Tx) -> AcceptedTermsRow:
            row, now = providers.ensure_provider(tx, terms.hub), self._clock.now()
            found = arrangements.find_accepted(tx, row)
            made = change if found == before else _Change.between(found, terms)  # the operator may have accepted
            if made.offered is not None:
                arrangements.store_offer(tx, row, terms.revision, made.offered, now)
            if made.is_new and (made.only_revision or self._config.arrangement.accept == "automatic"):
                arrangements.accept(tx, row, terms.terms_for(self._config.provider), now)
            known = arrangements.find_accepted(tx, row)
            if known is None:
                raise LookupError("the terms that this transaction stored are not found")
            return known

        return await self._store.write(store)

    async def _tell_hub(self, known: AcceptedTermsRow) -> bool:
        """Tell a hub that we accept its terms; return False if they have changed since we fetched them."""
        hub, revision = known.hub, known.offered_revision
        try:
            expect_empty(await self._peers.call(hub, "PUT", f"/ds/v1/arrangement/{revision}"))
        except ArrangementOutdated:
            return False
        await self._store.write(partial(_store_confirmation, hub, revision))
        self._known[hub] = attrs.evolve(known, acknowledged=1)
        return True


@attrs.frozen
class _Change:
    """How a hub's terms differ from those that are stored."""

    offered: str | None  # JSON to store; None if it is stored already
    is_new: bool  # the terms, or their revision, are not those that we accepted
    only_revision: bool  # we accepted terms with the same content

    @classmethod
    def between(cls, before: AcceptedTermsRow | None, terms: HubTerms) -> _Change:
        """Compare terms with a row."""
        members = terms.as_json()
        offered = json.dumps(members)
        if before is None:
            return cls(offered, is_new=True, only_revision=False)
        is_stored = before.offered_revision == terms.revision and _has_content(before.offered, members)
        accepted = before.accepted is not None and _has_content(before.accepted, members)
        is_new = before.accepted_revision != terms.revision or not accepted
        return cls(None if is_stored else offered, is_new, accepted)


def accept_offer(tx: Tx, hub: ProviderId, ours: ProviderId, now: Milliseconds) -> int:
    """Put a hub's newest terms in force and return their revision; raise `NotFound` if no terms are stored."""
    row, known = providers.provider_row(tx, hub), _find_accepted(hub, tx)
    if row is None or known is None:
        raise NotFound("no terms of this hub are stored yet")
    terms = HubTerms.decode(known.offered, hub, stored=True)
    arrangements.accept(tx, row, terms.terms_for(ours), now)
    return terms.revision


def _store_confirmation(hub: ProviderId, revision: int, tx: Tx) -> None:
    arrangements.note_acknowledged(tx, providers.ensure_provider(tx, hub), revision)


def _find_accepted(hub: ProviderId, tx: Tx) -> AcceptedTermsRow | None:
    row = providers.provider_row(tx, hub)
    return None if row is None else arrangements.find_accepted(tx, row)


def _has_content(stored: str, members: dict[str, Any]) -> bool:
    """Tell whether stored terms have these members, apart from the revision."""
    return bool({**json.loads(stored), "revision": members["revision"]} == members)
