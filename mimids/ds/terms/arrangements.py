"""Arrangements: the terms between a hub and the providers that take part in its groups (semantics: terms-and-reports).

As hub we give each other provider terms for its own users (bans, mutes) and for all (rates, sizes), with a revision
that counts the changes of their content; every answer to it names the current one. As follower we see that of each
hub, fetch what is new, accept it (at once, or when the operator does), tell the hub, and hold our own users to it.

The life of a hub's terms here: *offered* once fetched, *in force* once accepted, *told* once the hub has confirmed it.
All of it is rows. What is kept in memory is read again after `forget`, and nothing is lost with it: a hub that names a
revision which we do not have is asked again, and one that was not told is told by the job.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import attrs
import trio

from mimids.config import Config
from mimids.ds.limits.rates import Rate
from mimids.ds.notifier import Notifier
from mimids.ds.peer_answers import expect_empty
from mimids.ds.ports import Clock, PeerAnswer, Peers, PeerTransport, RelayedAnswer
from mimids.errors import (
    ArrangementOutdated,
    ArrangementRequired,
    MimiError,
    NotFound,
    PeerFailed,
    ProviderNotAllowed,
    TooLarge,
)
from mimids.mls.identity import provider_of
from mimids.store import arrangements, bans, providers
from mimids.store.arrangements import AcceptedTerms, OfferedTerms, Restriction
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds
from mimids.wire.base64url import base64url, from_base64url
from mimids.wire.ids import GroupId, ProviderId, UserId

TOPIC: Final = "arrangements"  # wakes the job
RETRY_SECONDS: Final = 30.0  # after a hub's terms could not be fetched, or it could not be told
CHANGES_MEANWHILE: Final = 3  # of a hub's terms, while we accept them
WORKERS: Final = 8  # hubs at once
AGAIN_SECONDS: Final = 1.0  # terms that change faster are fetched no oftener
IDLE_SECONDS: Final = 600.0
PROVIDERS_REMEMBERED: Final = 10_000
TERMS_OCTETS: Final = 4 * 1024 * 1024  # of a hub's JSON
FAR: Final = Milliseconds(1 << 62)

RATES: Final = ("device_sends_per_second", "device_sends_burst", "device_joins_per_hour", "device_joins_burst")
SIZES: Final = ("message_bytes", "group_info_bytes", "welcome_bytes")


@attrs.frozen
class HubTerms:
    """Terms as they travel: `{"revision", "hub", "bans", "mutes", "rates", "sizes"}`, what we understand of them."""

    revision: int
    hub: ProviderId
    bans: tuple[UserId, ...]
    mutes: tuple[tuple[UserId, GroupId], ...]  # an empty group id: in all groups
    rates: Mapping[str, float]
    sizes: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        """Return the members; a group id is base64url, null for all groups."""
        return {
            "revision": self.revision,
            "hub": self.hub,
            "bans": [user.decode("utf-8", "replace") for user in self.bans],
            "mutes": [
                {"user_id": user.decode("utf-8", "replace"), "group_id": base64url(group) if group else None}
                for user, group in self.mutes
            ],
            "rates": dict(self.rates),
            "sizes": dict(self.sizes),
        }

    @classmethod
    def read(cls, members: object, hub: ProviderId) -> HubTerms:
        """Read what a hub sent; unknown members are ignored. Raise `ValueError` where a known one is not sound."""
        try:
            if not isinstance(members, dict) or members["hub"] != hub:
                raise ValueError("not the terms of this hub")
            rates, sizes = members.get("rates") or {}, members.get("sizes") or {}
            return cls(
                _number(members["revision"]),
                hub,
                tuple(UserId(each.encode()) for each in _list(members["bans"])),
                tuple(
                    (UserId(each["user_id"].encode()), GroupId(from_base64url(each["group_id"] or "")))
                    for each in _list(members["mutes"])
                ),
                {name: _rate(rates[name]) for name in RATES if _rate(rates.get(name, 0))},
                {name: _number(sizes[name]) for name in SIZES if _number(sizes.get(name, 0))},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("a member is missing or of another type") from error

    def terms_for(self, provider: ProviderId) -> set[Restriction]:
        """Return what is said of one provider's users; a hub's word on anybody else's is nothing to it."""
        banned = {Restriction(user, None) for user in self.bans if provider_of(user) == provider}
        return banned | {Restriction(user, group) for user, group in self.mutes if provider_of(user) == provider}

    def rate(self, name: str, seconds: int) -> Rate | None:
        """Return a rate such as "device_sends" per that many seconds, None where the hub sets none."""
        unit = {1: "per_second", 3600: "per_hour"}[seconds]
        each, burst = self.rates.get(f"{name}_{unit}"), self.rates.get(f"{name}_burst")
        return None if not each or not burst else Rate(f"hub_{name}_{unit}", each / seconds, int(burst))


def _number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ValueError("a whole number is wanted")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


def _rate(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise ValueError("a number is wanted")
    return float(value)


def accept_offer(tx: Tx, hub: ProviderId, ours: ProviderId, now: Milliseconds) -> int:
    """Put a hub's newest terms in force; return their revision. Raise `NotFound` if we know none."""
    row = providers.provider_row(tx, hub)
    known = None if row is None else arrangements.find_accepted(tx, row)
    if row is None or known is None:
        raise NotFound("no terms of that hub are known")
    offer = HubTerms.read(json.loads(known.offered), hub)
    arrangements.accept(tx, row, offer.terms_for(ours), now)
    return offer.revision


@attrs.frozen
class _Known:
    """What a provider was given, as long as nothing in it ends."""

    given: OfferedTerms
    good_until: Milliseconds


class Arrangements:
    """Both sides of it; `run` is the job of the follower's side."""

    def __init__(self, config: Config, store: Store, clock: Clock, peers: Peers, notifier: Notifier) -> None:
        self._config = config
        self._provider = config.provider
        self._store = store
        self._clock = clock
        self._peers = peers
        self._notifier = notifier
        self._known: OrderedDict[ProviderId, _Known] = OrderedDict()
        self._banned: Mapping[ProviderId, Milliseconds | None] | None = None
        self._generation = 0  # of what is known from the store
        self._taken: dict[ProviderId, AcceptedTerms] = {}
        self._in_force: dict[ProviderId, HubTerms] = {}
        self._seen: OrderedDict[ProviderId, int] = OrderedDict()  # the revision that a hub named last
        self._next_attempt: dict[ProviderId, Milliseconds] = {}
        self._busy: set[ProviderId] = set()
        self._workers = trio.CapacityLimiter(WORKERS)
        self._renewing: dict[ProviderId, trio.Lock] = {}

    def forget(self) -> None:
        """Read bans and terms again: somebody else changed their rows."""
        self._generation += 1
        self._banned = None
        self._known.clear()
        self._notifier.notify(TOPIC)

    # --- as hub -------------------------------------------------------------------------------------------------

    async def check_allowed(self, provider: ProviderId) -> None:
        """Raise `ProviderNotAllowed` for a provider that is banned."""
        banned = self._banned
        if banned is None:
            generation = self._generation
            banned = await self._store.read(bans.banned_providers)
            if generation == self._generation:
                self._banned = banned
        if provider in banned and not _is_over(banned[provider], self._clock.now()):
            raise ProviderNotAllowed

    async def meet(self, provider: ProviderId) -> None:
        """Know the current revision of a provider's terms; raise `ProviderNotAllowed` for one that is banned."""
        await self.check_allowed(provider)
        now = self._clock.now()
        known = self._known.get(provider)
        while known is None or known.good_until <= now:
            generation = self._generation
            known = await self._store.write(partial(self._give, provider, now))
            if generation == self._generation:
                self._remember(provider, known)
                return

    def revision(self, provider: ProviderId) -> int | None:
        """Return the current revision of a provider's terms, for the header; None before `meet`."""
        known = self._known.get(provider)
        return None if known is None else known.given.revision

    def require(self, provider: ProviderId) -> None:
        """Raise `ArrangementRequired` where we want our terms accepted, and this provider has not accepted them.

        Those before the current ones suffice for the grace period.
        """
        known = self._known.get(provider)
        if not self._config.arrangement.required or known is None:
            return
        given, grace = known.given, self._config.arrangement.grace_seconds * 1000
        in_grace = self._clock.now() < given.changed_at + grace
        if given.accepted_revision == given.revision or (in_grace and given.accepted_revision == given.revision - 1):
            return
        raise ArrangementRequired(revision=given.revision)

    async def terms_for(self, provider: ProviderId) -> HubTerms:
        """Return the terms that a provider is given now."""
        now = self._clock.now()

        def work(tx: Tx) -> HubTerms:
            return self._offer(tx, provider, now, self._give(provider, now, tx).given.revision)[0]

        return await self._store.write(work)

    async def take_acceptance(self, provider: ProviderId, revision: int) -> None:
        """Record that a provider accepts its terms; raise `ArrangementOutdated` if they are others by now."""
        now = self._clock.now()

        def work(tx: Tx) -> _Known | ArrangementOutdated:
            current = self._give(provider, now, tx).given.revision
            if current != revision:
                return ArrangementOutdated(revision=current)
            arrangements.note_accepted(tx, providers.ensure_provider(tx, provider), revision, now)
            return self._give(provider, now, tx)

        generation = self._generation
        answer = await self._store.write(work)
        if isinstance(answer, ArrangementOutdated):
            raise answer
        if generation == self._generation:
            self._remember(provider, answer)

    def _remember(self, provider: ProviderId, known: _Known) -> None:
        self._known[provider] = known
        self._known.move_to_end(provider)
        if len(self._known) > PROVIDERS_REMEMBERED:
            self._known.popitem(last=False)

    def _give(self, provider: ProviderId, now: Milliseconds, tx: Tx) -> _Known:
        """Return what a provider is given, under a new revision if its content changed."""
        row = providers.ensure_provider(tx, provider)
        before = arrangements.find_offered(tx, row)
        offer, good_until = self._offer(tx, provider, now, 0)
        digest = hashlib.sha256(json.dumps(offer.as_json(), sort_keys=True).encode()).digest()
        if before is None or before.digest != digest:
            arrangements.offer(tx, row, 1 if before is None else before.revision + 1, digest, now)
        given = arrangements.find_offered(tx, row)
        if given is None:
            raise LookupError("it was given just now")
        return _Known(given, good_until)

    def _offer(self, tx: Tx, provider: ProviderId, now: Milliseconds, revision: int) -> tuple[HubTerms, Milliseconds]:
        """Return a provider's terms, and when something in them ends."""
        bans_now = [each for each in bans.every_ban(tx) if not _is_over(each.expires_at, now)]
        mutes_now = [each for each in bans.every_mute(tx) if not _is_over(each.expires_at, now)]
        banned = {UserId(ban.subject): ban.expires_at for ban in bans_now if isinstance(ban.subject, bytes)}
        muted = {(mute.user_id, mute.group_id): mute.expires_at for mute in mutes_now}
        theirs = tuple(sorted(user for user in banned if provider_of(user) == provider))
        muted_of_them = tuple(sorted(each for each in muted if provider_of(each[0]) == provider))
        ends = [banned[user] or FAR for user in theirs] + [muted[each] or FAR for each in muted_of_them]
        limits = self._config.limits
        rates = {name: getattr(limits, name) for name in RATES if getattr(limits, name)}
        sizes = {name: getattr(limits, name) for name in SIZES}
        offer = HubTerms(revision, self._provider, theirs, muted_of_them, rates, sizes)
        return offer, min(ends, default=FAR)

    # --- as follower --------------------------------------------------------------------------------------------

    def note(self, hub: ProviderId, revision: int) -> None:
        """Take note of the revision that a hub's answer named; the job fetches what is new."""
        is_news = self._seen.get(hub) != revision
        self._seen[hub] = revision
        self._seen.move_to_end(hub)
        if len(self._seen) > PROVIDERS_REMEMBERED:
            self._seen.popitem(last=False)
        known = self._taken.get(hub)
        if is_news and (known is None or known.offered_revision != revision):
            soon = self._after(AGAIN_SECONDS)  # it has just answered, whatever it did before
            if hub in self._next_attempt:
                self._next_attempt[hub] = min(self._next_attempt[hub], soon)
            self._notifier.notify(TOPIC)

    def in_force(self, hub: ProviderId) -> HubTerms | None:
        """Return the terms of a hub that we accepted."""
        return self._in_force.get(hub)

    def check_sizes(self, hub: ProviderId, sizes: Mapping[str, int]) -> None:
        """Raise `TooLarge` where an object is larger than a hub's terms allow."""
        terms = self._in_force.get(hub)
        for limit, octets in sizes.items():
            allowed = 0 if terms is None else terms.sizes.get(limit, 0)
            if allowed and octets > allowed:
                raise TooLarge(limit, octets)

    async def renew(self, hub: ProviderId) -> bool:
        """Fetch a hub's terms, accept them where that is automatic, and tell it; say whether it knows us to accept.

        Raises what the hub or the way to it refuses.
        """
        async with self._renewing.setdefault(hub, trio.Lock()):
            for _ in range(CHANGES_MEANWHILE):
                offer = await self._fetch(hub)
                known = await self._store.write(partial(self._take, offer))
                self._taken[hub] = known
                self._in_force_from(known)
                if known.accepted_revision != offer.revision:
                    return False  # the operator accepts
                if known.acknowledged or await self._tell(known):
                    return True
            raise PeerFailed("its terms change faster than they can be accepted")

    async def _tell(self, known: AcceptedTerms) -> bool:
        """Tell a hub that we accept; False if its terms have changed meanwhile."""
        try:
            expect_empty(await self._peers.call(known.hub, "PUT", f"/ds/v1/arrangement/{known.offered_revision}"))
        except ArrangementOutdated:
            return False
        await self._store.write(partial(self._note_told, known.hub, known.offered_revision))
        self._taken[known.hub] = attrs.evolve(known, acknowledged=1)
        return True

    async def _fetch(self, hub: ProviderId) -> HubTerms:
        answer = await self._peers.call(hub, "GET", "/ds/v1/arrangement")
        try:
            if len(answer.body) > TERMS_OCTETS:
                raise ValueError("too large")
            offer = HubTerms.read(json.loads(answer.body), hub)
        except (ValueError, RecursionError) as error:
            raise PeerFailed("its terms make no sense") from error
        self._seen[hub] = offer.revision
        return offer

    def _take(self, offer: HubTerms, tx: Tx) -> AcceptedTerms:
        """Keep a hub's terms, and accept them where nobody wants to be asked or nothing changed."""
        now = self._clock.now()
        row = providers.ensure_provider(tx, offer.hub)
        before = arrangements.find_accepted(tx, row)
        if before is None or before.offered_revision != offer.revision or _content(before.offered) != _content(offer):
            arrangements.store_offer(tx, row, offer.revision, json.dumps(offer.as_json()), now)
        accepted = before is not None and before.accepted is not None and _content(before.accepted) == _content(offer)
        is_new = before is None or before.accepted_revision != offer.revision or not accepted
        if is_new and (accepted or self._config.arrangement.accept == "automatic"):
            accept_offer(tx, offer.hub, self._provider, now)
        found = arrangements.find_accepted(tx, row)
        if found is None:
            raise LookupError("it was kept just now")
        return found

    def _note_told(self, hub: ProviderId, revision: int, tx: Tx) -> None:
        arrangements.note_acknowledged(tx, providers.ensure_provider(tx, hub), revision)

    def _in_force_from(self, known: AcceptedTerms) -> None:
        if known.accepted is not None:
            self._in_force[known.hub] = HubTerms.read(json.loads(known.accepted), known.hub)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Know the terms in force; then fetch what hubs have changed, and tell those that do not know we accepted."""
        with self._notifier.listen(TOPIC) as waiter:
            await self._load()
            task_status.started()
            generation = self._generation
            async with trio.open_nursery() as renewing:
                while True:
                    if generation != self._generation:
                        generation = self._generation
                        await self._load()
                    now = self._clock.now()
                    behind = [hub for hub in self._behind() if hub not in self._busy]
                    for hub in behind:
                        if self._next_attempt.get(hub, now) <= now:
                            self._busy.add(hub)
                            renewing.start_soon(self._renew_or_later, hub)
                    waits = [self._next_attempt[hub] - now for hub in behind if hub not in self._busy]
                    await waiter.wait_at_most(self._clock, min([IDLE_SECONDS, *(ms / 1000 for ms in waits)]))

    async def _renew_or_later(self, hub: ProviderId) -> None:
        try:
            async with self._workers:
                await self.renew(hub)
            self._next_attempt[hub] = self._after(AGAIN_SECONDS)
        except MimiError:  # not there, not willing, or no terms at all
            self._next_attempt[hub] = self._after(RETRY_SECONDS)
        finally:
            self._busy.discard(hub)
            self._notifier.notify(TOPIC)

    def _after(self, seconds: float) -> Milliseconds:
        return Milliseconds(self._clock.now() + int(seconds * 1000))

    async def _load(self) -> None:
        for each in await self._store.read(arrangements.every_accepted):
            self._taken[each.hub] = each
            self._in_force_from(each)

    def _behind(self) -> list[ProviderId]:
        """Return the hubs whose terms we do not know, or who do not know that we accepted them."""
        unknown = [
            hub for hub, seen in self._seen.items() if (k := self._taken.get(hub)) is None or k.offered_revision != seen
        ]
        untold = [
            hub
            for hub, known in self._taken.items()
            if known.accepted_revision == known.offered_revision and not known.acknowledged
        ]
        return [*unknown, *(hub for hub in untold if hub not in unknown)]


def _is_over(expires_at: Milliseconds | None, now: Milliseconds) -> bool:
    return expires_at is not None and expires_at <= now


def _content(terms: HubTerms | str) -> dict[str, Any]:
    members: dict[str, Any] = json.loads(terms) if isinstance(terms, str) else terms.as_json()
    return {name: value for name, value in members.items() if name != "revision"}


class ArrangedPeers:
    """`ports.Peers` that notes the revision of its terms that a provider's answer names, and calls no banned one."""

    def __init__(self, peers: PeerTransport, arrangements_: Arrangements) -> None:
        self._peers = peers
        self._arrangements = arrangements_

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
        """Exchange one request, as `Peers.call` does."""
        await self._arrangements.check_allowed(provider)
        return await self._peers.call(
            provider,
            method,
            path,
            body,
            media_type=media_type,
            timeout_seconds=timeout_seconds,
            wait_seconds=wait_seconds,
            on_terms_revision=partial(self._arrangements.note, provider),
        )

    async def call_plainly(
        self, provider: ProviderId, method: str, path: str, body: bytes = b"", *, media_type: str
    ) -> RelayedAnswer:
        """Exchange one request, as `Peers.call_plainly` does."""
        return await self._peers.call_plainly(provider, method, path, body, media_type=media_type)
