"""The job that has removed devices leave their groups (semantics: departures).

Removal
    The transaction that removes a user or device stores a removal, which has digests and no names, and the groups that
    the device was seen in.

Search
    All groups are searched once for leaves of the removed device. Then, as long as the removal is watched, a group is
    searched again whenever a commit was sequenced or pushed in it. A search replaces the departures of the group. A
    leaf that has left has no departure any more. A leaf that is still there after a commit has a new departure at the
    new tip.

Proposal
    For each departure that is due, a signed Remove is sequenced by our own hub, or sent to the other provider that is
    the hub. The Remove is stored before it is sent, so that a repeat has the same octets.

Retry
    If a hub cannot be reached, all its departures wait until a back-off ends or the hub calls us. A Remove that the hub
    refuses is listed for the operator, and tried again after the next commit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import attrs
import trio

from mimids.ds.backoff import Backoff
from mimids.ds.departures.leaves import RemovedLeaves
from mimids.ds.departures.provider_keys import ProviderKeys
from mimids.ds.departures.searching import GroupSearch
from mimids.ds.early_retries import EarlyRetries
from mimids.ds.groups.hub import LocalHub
from mimids.ds.groups.states import States
from mimids.ds.limits.call_slots import CallSlots, CallTooSlow
from mimids.ds.lru import LeastRecentlyUsed
from mimids.ds.notifier import DEPARTURES, Notifier
from mimids.ds.peer_answers import decode_answer
from mimids.ds.ports import Clock, Peers
from mimids.ds.terms.accepted import AcceptedTerms
from mimids.errors import (
    ArrangementRequired,
    Busy,
    MimiError,
    PeerFailed,
    PeerUnavailable,
    ProviderNotAllowed,
    RateLimited,
    Recovering,
    StorageUnavailable,
)
from mimids.mls.framing import MLSMessage
from mimids.mls.key_package import KeyPackageIn
from mimids.store import departures, moved, ohttp, provider_keys
from mimids.store.departures import DueRemove, SearchProgress
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.moved import Looked, StampPage
from mimids.values import DAY_MILLISECONDS, DeviceRow, Milliseconds
from mimids.wire.codec import WireError
from mimids.wire.declare import decode, encode
from mimids.wire.ids import MaskedPartitionKey, ProviderId
from mimids.wire.messages import ExternalProposalRequest, SendResponse

WATCH_DAYS: Final = 30  # at least, because somebody may still add the device with an old KeyPackage
LOOK_SECONDS: Final = 1.0  # between two searches for new commits, while there are removals
IDLE_SECONDS: Final = 600.0
SEARCH_ALL_SECONDS: Final = 3600.0  # between two searches of the groups that have departures
RETRY_SECONDS: Final = 10.0  # after a failure of our own disk
GROUPS_AT_ONCE: Final = 16
PARTITIONS_AT_ONCE: Final = 500
REMOVES_AT_ONCE: Final = 64  # Removes for one hub
DEPARTURES_OF_A_HUB: Final = 10_000
DEPARTURES_OF_A_GROUP: Final = 64
PARTITIONS_REMEMBERED: Final = 100_000
STAMPS_NOT_STORED: Final = 1000  # a restart looks at these again
CALL_OCTETS: Final = 4096
STOCK_PAGE: Final = 200

_STOCK_READ: Final = "signature_keys_of_stock"  # a setting: the row up to which KeyPackages of older versions were read
_OF_THE_HUB: Final = (
    PeerUnavailable,
    PeerFailed,
    RateLimited,
    Busy,
    ArrangementRequired,
    ProviderNotAllowed,
    StorageUnavailable,
)


@attrs.frozen
class DepartureStatistics:
    """What the job has done since the start."""

    searched: int  # groups
    proposed: int  # Removes that were sequenced
    refused: int  # Removes that a hub refused
    failures: int  # attempts that have to be repeated


class Departures:
    """Has removed devices leave their groups; `run` is the job."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        peers: Peers,
        states: States,
        hub: LocalHub,
        keys: ProviderKeys,
        accepted: AcceptedTerms,
        notifier: Notifier,
        *,
        provider: ProviderId,
        backoff: Backoff,
        bound_hit: Callable[[str], None] = lambda bound: None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._peers = peers
        self._states = states
        self._hub = hub
        self._keys = keys
        self._accepted = accepted
        self._notifier = notifier
        self._provider = provider
        self._backoff = backoff
        self._bound_hit = bound_hit
        self._early = EarlyRetries(clock, partial(notifier.notify, DEPARTURES))
        self._slots = CallSlots(quick_calls=8, slow_calls=4)
        self._busy: set[ProviderId] = set()
        self._leaves = RemovedLeaves(())
        self._newest = 0  # the newest removal in `_leaves`
        self._looked: Looked | None = None
        self._seen: LeastRecentlyUsed[int, tuple[str, int]] = LeastRecentlyUsed(PARTITIONS_REMEMBERED)
        self._stock_read = self._missed = False
        self._search_all_at = Milliseconds(0)  # a time of the monotonic clock
        self._searched = self._proposed = self._refused = self._failures = 0

    def statistics(self) -> DepartureStatistics:
        """Return the counts so far."""
        return DepartureStatistics(self._searched, self._proposed, self._refused, self._failures)

    def heard(self, provider: ProviderId) -> None:
        """Send a provider that has called us the Removes that wait for a back-off, without further delay."""
        self._early.heard(provider)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Search groups and propose Removes, until cancelled."""
        with self._notifier.listen(DEPARTURES) as waiter:
            async with trio.open_nursery() as calling:
                task_status.started()
                while True:
                    try:
                        await self._read_stock()
                        idle = await self._round(calling)
                    except StorageUnavailable:
                        idle = RETRY_SECONDS
                    if idle:
                        await waiter.wait_at_most(self._clock, min([idle, *self._early.seconds_left()]))
                    else:
                        await trio.lowlevel.checkpoint()

    async def _round(self, calling: trio.Nursery) -> float:
        """Do a part of the work that is due; return the seconds until there may be more, 0 if there is more now."""
        search = await self._store.read(departures.search)
        if search is None:
            self._looked = None
            return IDLE_SECONDS
        await self._load(search)
        more = await self._search_unsearched(search) or await self._search_changed(search)
        if not more and self._search_all_at <= self._clock.running():
            await self._search_again()
        if heard := self._early.take_due():
            await self._store.write(lambda tx: departures.try_soon(tx, heard))
        now = self._clock.now()
        latest = Milliseconds(now + int(self._backoff.cap_seconds * 1000))
        if await self._store.read(lambda tx: departures.is_any_after(tx, latest)):  # the clock was set back
            await self._store.write(lambda tx: departures.try_all_after(tx, latest))
        for hub in await self._store.read(lambda tx: departures.hubs_due(tx, now)):
            if hub not in self._busy:
                self._busy.add(hub)
                self._early.begin(hub)
                calling.start_soon(self._serve, hub)
        return 0 if more else LOOK_SECONDS

    # --- search -------------------------------------------------------------------------------------------------

    async def _load(self, search: SearchProgress) -> None:
        """Read the removals again if there are new ones."""
        if search.undated:
            await self._store.write(lambda tx: departures.date_removals(tx, self._clock.now()))
        if search.newest != self._newest:
            removals = await self._store.read(departures.every_removal)
            self._leaves, self._newest = RemovedLeaves(removals), max((each.id for each in removals), default=0)

    async def _search_unsearched(self, search: SearchProgress) -> bool:
        """Search the next groups that have yet to be searched for a removal; return whether there are more."""
        if search.next_group is None:
            return False
        start, newest = search.next_group, search.newest
        page = await self._store.read(lambda tx: departures.groups_page(tx, start, limit=GROUPS_AT_ONCE))
        for group in page:
            await self._search(group)
        following = page[-1] + 1 if len(page) == GROUPS_AT_ONCE else None
        await self._store.write(
            lambda tx: departures.move_search(tx, newest, next_group=following, next_stamp=search.next_stamp)
        )
        return following is not None

    async def _search_changed(self, search: SearchProgress) -> bool:
        """Search the groups with a commit since the last call; return whether there are more such groups."""
        looked = self._looked
        if looked is None or looked.settled < search.next_stamp:
            looked = Looked.up_to(search.next_stamp)

        def look(tx: Tx) -> tuple[StampPage, list[tuple[int, int, str, int]]]:
            page = moved.next_page(tx, looked, limit=PARTITIONS_AT_ONCE)
            return page, departures.moved_on(tx, page)

        page, partitions = await self._store.read(look)
        groups = []
        for partition, group, *change in partitions:
            seen = change[0], change[1]
            if self._seen.get(partition) != seen:
                groups.append(group)
        for group in dict.fromkeys(groups):
            await self._search(group)
        for partition, _, knowledge, child in partitions:
            self._seen.put(partition, (knowledge, child))
        self._looked = page.looked
        settled = page.looked.settled
        if groups or settled - search.next_stamp >= STAMPS_NOT_STORED:
            await self._store.write(
                lambda tx: departures.move_search(tx, search.newest, next_group=None, next_stamp=settled)
            )
        return not page.whole

    async def _search_again(self) -> None:
        """Search groups with departures again, because the hub may now accept a Remove that it refused.

        End old removals.
        """
        self._search_all_at = Milliseconds(self._clock.running() + int(SEARCH_ALL_SECONDS * 1000))
        for group in await self._store.read(departures.groups_with_departures):
            await self._search(group)
        if self._missed:  # there may be room for them now
            self._missed = False
            await self._store.write(departures.search_again)
        now = self._clock.now()
        watch = WATCH_DAYS * DAY_MILLISECONDS
        if await self._store.write(lambda tx: departures.forget_finished(tx, now, watch_milliseconds=watch)):
            self._newest = 0

    async def _search(self, group: int) -> None:
        """Search one group, and replace its departures."""
        search = GroupSearch(self._states, self._leaves, await self._keys.all_keys())
        self._searched += 1
        with suppress(LookupError):  # the group was deleted meanwhile
            stored, found = await self._store.read(
                lambda tx: (departures.departures_of(tx, group), search.departures_in(tx, group))
            )
            if stored or found:
                put = partial(
                    departures.put_departures,
                    group=group,
                    found=found,
                    in_group=DEPARTURES_OF_A_GROUP,
                    at_hub=DEPARTURES_OF_A_HUB,
                )
                if not await self._store.write(put):
                    self._missed = True
                    self._bound_hit("departures")

    # --- proposals ----------------------------------------------------------------------------------------------

    async def _serve(self, hub: ProviderId) -> None:
        """Have a hub sequence its due Removes."""
        try:
            while due := await self._store.read(self._due_at(hub)):
                for each in due:
                    if not await self._propose(each):
                        return
        except StorageUnavailable:  # nothing was written, so the Removes are still due
            await self._clock.sleep(RETRY_SECONDS)
        finally:
            self._busy.discard(hub)
            self._early.end(hub)
            self._notifier.notify(DEPARTURES)

    def _due_at(self, hub: ProviderId) -> Callable[[Tx], list[DueRemove]]:
        now = self._clock.now()
        return lambda tx: departures.due_at(tx, hub, now, limit=REMOVES_AT_ONCE)

    async def _propose(self, due: DueRemove) -> bool:
        """Have one Remove sequenced, and record the outcome.

        Return False if no more Removes may be sent to the hub for now.
        """
        try:
            await self._sequence(due)
        except CallTooSlow:
            return True  # cancelled, because calls to other hubs waited
        except _OF_THE_HUB as error:
            await self._note_failure(due, error)
            return False
        except Recovering as error:
            await self._note_failure(due, error, alone=True)
            return True
        except MimiError as error:
            reason = error.code
            self._refused += 1
            await self._store.write(lambda tx: departures.note_refused(tx, due.id, reason))
            return True
        self._proposed += 1
        await self._store.write(lambda tx: departures.note_proposed(tx, due.id))
        return True

    async def _sequence(self, due: DueRemove) -> None:
        message, partition = decode(MLSMessage, due.message), MaskedPartitionKey(due.partition)
        request = ExternalProposalRequest(message, partition)
        if due.hub == self._provider:
            await self._hub.propose_as_provider(request)
            return
        try:
            await self._call(due.hub, request)
        except ArrangementRequired:
            if not await self._accepted.renew(due.hub):
                raise
            await self._call(due.hub, request)

    async def _call(self, hub: ProviderId, request: ExternalProposalRequest) -> None:
        call = partial(self._peers.call, hub, "POST", "/ds/v1/propose", encode(request))
        async with self._slots.slot(hub, CALL_OCTETS) as slot:
            decode_answer(SendResponse, await slot.call(call))

    async def _note_failure(self, due: DueRemove, error: MimiError, *, alone: bool = False) -> None:
        """Try a Remove, or all Removes of its hub, again after a back-off."""
        self._failures += 1
        reason = error.code
        at = Milliseconds(self._clock.now() + int(self._backoff.seconds_after(error, due.failures + 1) * 1000))
        if alone:
            await self._store.write(lambda tx: departures.note_failure(tx, due.id, reason, at))
            return
        await self._store.write(lambda tx: departures.postpone(tx, due.hub, reason, at))
        self._early.failed(due.hub, error)

    # --- KeyPackages of older versions --------------------------------------------------------------------------

    async def _read_stock(self) -> None:
        """After an update of mimids, record the signature keys of KeyPackages that an older version stored."""
        if self._stock_read:
            return
        done = await self._store.read(lambda tx: ohttp.setting(tx, _STOCK_READ))
        after = 0 if done is None else int(done)
        while done != b"-1":
            page = await self._store.read(partial(provider_keys.stock_page, after=after, limit=STOCK_PAGE))
            after = page[-1][0] if len(page) == STOCK_PAGE else -1
            done = b"%d" % after
            await self._store.write(partial(_store_keys, page=page, done=done))
        self._stock_read = True


def _store_keys(tx: Tx, page: Sequence[tuple[int, DeviceRow, bytes]], done: bytes) -> None:
    for _, device, body in page:
        with suppress(WireError):
            key = decode(KeyPackageIn, body).leaf_node.signature_key
            provider_keys.add_of_device(tx, device, [key])
    ohttp.put_setting(tx, _STOCK_READ, done)
