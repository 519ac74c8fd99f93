"""Finding the leaves of removed devices at the tips of a group, and whether a Remove of each can be signed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from mimids.ds.departures.leaves import FoundLeaf, RemovedLeaves
from mimids.ds.departures.provider_keys import ProviderKey
from mimids.ds.groups.states import States
from mimids.ds.groups.visible_proposals import pending_removes
from mimids.mls.knowledge import state_of
from mimids.mls.public_group import PublicGroup
from mimids.store import departures, groups, tips
from mimids.store.departures import ANYWHERE, DUE, IMPOSSIBLE, NOT_KNOWN, PROPOSED, DepartingLeaf
from mimids.store.engine.transaction import Tx
from mimids.store.partitions import Partition
from mimids.wire.declare import encode

TIPS: Final = 64  # the most active tips of a group
LEAVES: Final = 256  # leaves at one tip

STATE_UNKNOWN: Final = "state-unknown"
ENCRYPTED: Final = "encrypted-handshakes"
KEY_NOT_LISTED: Final = "key-not-listed"


@attrs.frozen
class GroupSearch:
    """What a search of groups needs: states, the removals, and the keys that may sign."""

    states: States
    leaves: RemovedLeaves
    keys: Sequence[ProviderKey]

    def departures_in(self, tx: Tx, row: int) -> list[DepartingLeaf]:
        """Return the leaves of removed devices at the tips of a group; leaves of earlier epochs do not count.

        If the state of a tip is not known, the devices that were found in the group before are returned.
        """
        group = groups.group_by_row(tx, row)
        stored = departures.departures_of(tx, row)
        found: list[DepartingLeaf] = []
        unknown = False
        for tip in tips.open_tips(tx, row, limit=TIPS):
            state = state_of(self.states.knowledge(tx, group, tip))
            if state is None:
                unknown = True
            else:
                found += self._at_tip(tx, tip, state, stored)
        if unknown:
            reason = ENCRYPTED if group.encrypted_handshakes else STATE_UNKNOWN
            seen = {each.removal for each in stored}
            found += [DepartingLeaf(each, ANYWHERE, NOT_KNOWN, None, IMPOSSIBLE, reason) for each in sorted(seen)]
        return found

    def _at_tip(
        self, tx: Tx, tip: Partition, state: PublicGroup, stored: Sequence[DepartingLeaf]
    ) -> Iterator[DepartingLeaf]:
        leaves = self.leaves.find(tx, state)[:LEAVES]
        if not leaves:
            return
        signer = self._signer(state)
        pending = pending_removes(tx, tip)
        signed = {each.place: each.message for each in stored if each.message is not None}
        for leaf in leaves:
            place = leaf.removal, tip.id, leaf.index
            if leaf.doubt is not None:
                yield _impossible(tip, leaf, leaf.doubt)
            elif leaf.index in pending:
                yield DepartingLeaf(*place, leaf.identity, PROPOSED)
            elif signer is None:
                yield _impossible(tip, leaf, KEY_NOT_LISTED)
            else:
                # The same octets are sent again: another signature would be another proposal (semantics: sequencing).
                message = signed.get(place) or encode(signer[1].pair.remove(state, signer[0], leaf.index))
                yield DepartingLeaf(*place, leaf.identity, DUE, message=message)

    def _signer(self, state: PublicGroup) -> tuple[int, ProviderKey] | None:
        """Return the entry of external_senders that is one of our keys, and the key; None if the group lists none."""
        by_public = {key.pair.public: key for key in self.keys if key.pair.scheme == state.suite.scheme}
        for index, sender in enumerate(state.parameters.external_senders):
            key = by_public.get(sender.signature_key)
            if key is not None:
                return index, key
        return None


def _impossible(tip: Partition, leaf: FoundLeaf, reason: str) -> DepartingLeaf:
    return DepartingLeaf(leaf.removal, tip.id, leaf.index, leaf.identity, IMPOSSIBLE, reason)
