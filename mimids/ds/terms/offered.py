"""The terms that we offer as hub to each other provider (semantics: terms-and-reports).

A provider's terms hold the bans and mutes of its own users, and the rates and sizes that apply to everybody. Terms have
a revision, which grows by one whenever their content changes. Every answer to the provider names the current revision
in the header `Mimids-Arrangement`; the provider fetches the new terms and tells us which revision it accepts.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from typing import Final

import attrs

from mimids.config import Config
from mimids.ds.lru import LeastRecentlyUsed
from mimids.ds.ports import Clock
from mimids.ds.terms.banned_providers import BannedProviders, is_over
from mimids.ds.terms.hub_terms import RATES, SIZES, HubTerms
from mimids.errors import ArrangementOutdated, ArrangementRequired
from mimids.mls.identity import provider_of
from mimids.store import arrangements, bans, providers
from mimids.store.arrangements import OfferedTermsRow
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds
from mimids.wire.ids import ProviderId, UserId

PROVIDERS_CACHED: Final = 10_000
NEVER: Final = Milliseconds(1 << 62)


@attrs.frozen
class _Offer:
    """A provider's revision; it is current until a ban or mute ends, terms are changed or the clock is set back."""

    given: OfferedTermsRow
    made_at: Milliseconds
    valid_until: Milliseconds
    generation: int = 0

    def is_current(self, now: Milliseconds, generation: int) -> bool:
        return self.made_at <= now < self.valid_until and self.generation == generation


class OfferedTerms:
    """The terms that we as hub give to each other provider, and which revision it has accepted."""

    def __init__(self, config: Config, store: Store, clock: Clock, banned: BannedProviders) -> None:
        self._config = config
        self._store = store
        self._clock = clock
        self._banned = banned
        self._offers: LeastRecentlyUsed[ProviderId, _Offer] = LeastRecentlyUsed(PROVIDERS_CACHED)
        self._generation = 0
        store.when_changed(self.forget, "bans", "mutes", "offered_terms")

    def forget(self) -> None:
        """Make `load` read the store again; call this after a commit that changed bans or mutes.

        A request that has called `load` already is answered by the terms of that moment.
        """
        self._generation += 1
        self._banned.forget()

    async def load(self, provider: ProviderId) -> None:
        """Bring the revision of a provider's terms up to date, for `revision` and `require`.

        Raises `ProviderNotAllowed` if the provider is banned.
        """
        await self._banned.check_allowed(provider)
        now = self._clock.now()
        offer = self._offers.get(provider)
        while offer is None or not offer.is_current(now, self._generation):
            generation = self._generation
            read = await self._store.write(partial(self._update, provider, now))
            offer = attrs.evolve(read, generation=generation)
            self._offers.put(provider, offer)

    def revision(self, provider: ProviderId) -> int | None:
        """Return the current revision of a provider's terms, for the header; None before `load`."""
        offer = self._offers.get(provider)
        return None if offer is None else offer.given.revision

    def require(self, provider: ProviderId) -> None:
        """Raise `ArrangementRequired` if the configuration requires acceptance and the provider has not accepted.

        For `grace_seconds` after a change, acceptance of the previous revision is enough.
        """
        offer = self._offers.get(provider)
        if not self._config.arrangement.required or offer is None:
            return
        given, grace = offer.given, self._config.arrangement.grace_seconds * 1000
        in_grace = given.changed_at <= self._clock.now() < given.changed_at + grace
        if given.accepted_revision == given.revision or (in_grace and given.accepted_revision == given.revision - 1):
            return
        raise ArrangementRequired(revision=given.revision)

    async def terms_for(self, provider: ProviderId) -> HubTerms:
        """Return the current terms of a provider."""
        now = self._clock.now()

        def work(tx: Tx) -> HubTerms:
            return self._terms(tx, provider, now, self._update(provider, now, tx).given.revision)[0]

        return await self._store.write(work)

    async def record_acceptance(self, provider: ProviderId, revision: int) -> None:
        """Record that a provider accepts `revision`; raise `ArrangementOutdated` if another revision is current."""
        now = self._clock.now()

        def work(tx: Tx) -> _Offer | ArrangementOutdated:
            current = self._update(provider, now, tx).given.revision
            if current != revision:
                return ArrangementOutdated(revision=current)
            arrangements.note_accepted(tx, providers.ensure_provider(tx, provider), revision, now)
            return self._update(provider, now, tx)

        generation = self._generation
        offer = await self._store.write_or_refuse(work)
        self._offers.put(provider, attrs.evolve(offer, generation=generation))

    def _update(self, provider: ProviderId, now: Milliseconds, tx: Tx) -> _Offer:
        """Return a provider's current revision; store a new one if the content has changed."""
        row = providers.ensure_provider(tx, provider)
        before = arrangements.find_offered(tx, row)
        terms, valid_until = self._terms(tx, provider, now, 0)
        digest = hashlib.sha256(json.dumps(terms.as_json(), sort_keys=True).encode()).digest()
        if before is None or before.digest != digest:
            revision = arrangements.first_revision(tx) if before is None else before.revision + 1
            arrangements.offer(tx, row, revision, digest, now)
        given = arrangements.find_offered(tx, row)
        if given is None:
            raise LookupError("the revision was stored in this transaction")
        return _Offer(given, now, valid_until)

    def _terms(self, tx: Tx, provider: ProviderId, now: Milliseconds, revision: int) -> tuple[HubTerms, Milliseconds]:
        """Return a provider's terms, and when the first ban or mute in them ends."""
        bans_now = [each for each in bans.every_ban(tx) if not is_over(each.expires_at, now)]
        mutes_now = [each for each in bans.every_mute(tx) if not is_over(each.expires_at, now)]
        banned = {UserId(ban.subject): ban.expires_at for ban in bans_now if isinstance(ban.subject, bytes)}
        muted = {(mute.user_id, mute.group_id): mute.expires_at for mute in mutes_now}
        their_banned = tuple(sorted(user for user in banned if provider_of(user) == provider))
        their_muted = tuple(sorted(each for each in muted if provider_of(each[0]) == provider))
        ends = [banned[user] or NEVER for user in their_banned] + [muted[each] or NEVER for each in their_muted]
        limits = self._config.limits
        rates = {name: getattr(limits, name) for name in RATES if getattr(limits, name)}
        sizes = {name: getattr(limits, name) for name in SIZES}
        terms = HubTerms(revision, self._config.provider, their_banned, their_muted, rates, sizes)
        return terms, min(ends, default=NEVER)
