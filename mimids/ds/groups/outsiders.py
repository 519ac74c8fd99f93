"""Who may join a group from outside, propose from outside, and get a GroupInfo for joining.

(semantics: joining-from-outside)

In the mode "followers" a provider may make these requests for its own users while it is in the group. It is in the
group if it presented a key of the group or accepted a Welcome, and if one of its users has a leaf at the tip of a
branch. It is not enough that the provider has followed the group: a provider whose users were removed still follows the
partitions before their removal. A provider gets the GroupInfo only of a branch in which it has a user, because a
removed member can open another branch in the epoch before the removal. If a state is unknown, members may or may not
have been removed; then the request is allowed.
"""

from __future__ import annotations

from typing import Final, Literal

import attrs

from mimids.ds.groups.states import States
from mimids.mls.code_points import SenderType
from mimids.mls.framing import MLSMessage, PublicMessage
from mimids.mls.identity import provider_of, user_of
from mimids.mls.proposals import Add, Commit, Proposal
from mimids.store import follows, providers
from mimids.store import tips as stored_tips
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.partitions import Partition
from mimids.values import Device, Sender
from mimids.wire.ids import ProviderId, UserId

TIPS: Final = 64  # tips that are checked: the most active ones


@attrs.frozen
class Outsiders:
    """Decides, by the configured mode, who may join or propose from outside; runs within a transaction."""

    mode: Literal["open", "followers", "off"]
    states: States

    def may_join_group(self, tx: Tx, group: Group | None, caller: Sender) -> bool:
        """Tell whether the caller may join the group or propose to it.

        For an unknown group the same statements run as for a group that the caller never followed. A provider may join
        even while a Welcome is on its way to it, because its device may get the Welcome before we get the provider's
        answer.
        """
        caller_and_group = (providers.provider_row(tx, caller.provider) or 0, group.id if group else 0)
        follows_it = follows.follows_group(tx, *caller_and_group) or follows.is_welcomed(tx, *caller_and_group)
        if self.mode != "followers" or isinstance(caller, Device):
            return self.mode != "off"
        if group is None or not follows_it:
            return False
        if group.successor is not None:  # every request is refused with `GroupReplaced`, and no tip is open
            return True
        tips = stored_tips.open_tips(tx, group.id, limit=TIPS)
        return any(self._is_in(tx, group, tip, caller.provider) for tip in tips)

    def may_see(self, tx: Tx, group: Group, partition: Partition, caller: Sender) -> bool:
        """Tell whether the caller, who may join the group, may get the GroupInfo of this partition."""
        if self.mode == "open" or isinstance(caller, Device):
            return True
        tip = stored_tips.live_tip(tx, group.id, below=partition.id)
        return all(self._is_in(tx, group, each, caller.provider) for each in (partition, tip) if each is not None)

    def may_send_for(self, message: MLSMessage, caller: Sender) -> bool:
        """Tell whether the caller may pass on a message from outside; False if another provider's user would join."""
        if self.mode == "open" or isinstance(caller, Device):
            return True
        user = _joining(message)
        return user is None or provider_of(user) in (None, caller.provider)

    def _is_in(self, tx: Tx, group: Group, partition: Partition, provider: ProviderId) -> bool:
        """Tell whether a follower of the group has a member in a partition; True if its state is not known."""
        return partition.state is None or self.states.has_leaf_of(tx, group, partition, provider)


def _joining(message: MLSMessage) -> UserId | None:
    """Return the user who joins by an external commit or a proposal of a new member, None if that is not known."""
    public = message.message
    if not isinstance(public, PublicMessage):
        return None
    content, sender = public.content.content, public.content.sender.sender_type
    if isinstance(content, Commit) and sender is SenderType.NEW_MEMBER_COMMIT and content.path is not None:
        return user_of(content.path.leaf_node.credential)
    if isinstance(content, Proposal) and sender is SenderType.NEW_MEMBER_PROPOSAL and isinstance(content.body, Add):
        return user_of(content.body.key_package.leaf_node.credential)
    return None
