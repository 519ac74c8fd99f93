"""What a device sends, made of the bytes that its MLS library gives it. Nothing here waits or opens anything.

All raise `ValueError` (a `WireError`) for bytes that are no MLSMessage. An MLSMessage is what RFC 9420 section 6 calls
so, with version and wire format in front; some libraries hand out the inner message only.
"""

from __future__ import annotations

from collections.abc import Sequence

from mimids.mls.code_points import ContentType
from mimids.mls.framing import MLSMessage
from mimids.wire.declare import decode
from mimids.wire.ids import MLS10, CipherSuite, GroupId, MaskedPartitionKey, PartitionKey, ProviderId
from mimids.wire.messages import (
    RATCHET_TREE,
    CommitData,
    CreateGroupRequest,
    ExternalJoinRequest,
    ExternalProposalRequest,
    SendRequest,
    WelcomeData,
)

EXPORTER_LABEL = "mimids partition key"
"""A partition key is MLS-Exporter(EXPORTER_LABEL, "", PartitionKey.SIZE) of its epoch (wire: structures)."""


def message(mls_message: bytes, partition_key: PartitionKey) -> SendRequest:
    """Return an application message or a proposal as it is sent; the key is that of the epoch it was made in."""
    parsed = decode(MLSMessage, mls_message)
    if parsed.content_type not in (ContentType.APPLICATION, ContentType.PROPOSAL):
        raise ValueError("neither an application message nor a proposal")
    return SendRequest(parsed, partition_key, None)


def commit(
    mls_message: bytes,
    partition_key: PartitionKey,
    next_partition_key: PartitionKey,
    *,
    group_info: bytes | None = None,
    welcome: bytes | None = None,
    service_providers: Sequence[ProviderId] = (),
) -> SendRequest:
    """Return a commit as it is sent: `next_partition_key` is that of the epoch it leads to.

    `group_info` lets others join from outside. A `welcome` needs in `service_providers`, for each of its secrets in
    their order, the provider of the user it is for; one name twice if that has two of them.
    """
    parsed = decode(MLSMessage, mls_message)
    if parsed.content_type is not ContentType.COMMIT:
        raise ValueError("no commit")
    return SendRequest(
        parsed,
        partition_key,
        CommitData(next_partition_key, _optional(group_info), _welcome_data(welcome, service_providers)),
    )


def creation(
    group_id: GroupId,
    cipher_suite: CipherSuite,
    partition_key: PartitionKey,
    *,
    group_info: bytes | None = None,
    ratchet_tree: bytes | None = None,
    welcome: bytes | None = None,
    service_providers: Sequence[ProviderId] = (),
) -> CreateGroupRequest:
    """Return what makes a group at one's own provider; `partition_key` is that of the first epoch that is sent to.

    `group_info` and, unless that holds it, `ratchet_tree` let the hub follow the group's state, as far as it can.
    """
    tree = None if ratchet_tree is None else RATCHET_TREE.decode(ratchet_tree)
    data = _welcome_data(welcome, service_providers)
    return CreateGroupRequest(group_id, MLS10, cipher_suite, partition_key, _optional(group_info), tree, data)


def external_join(
    mls_message: bytes, next_partition_key: PartitionKey, *, group_info: bytes | None = None
) -> ExternalJoinRequest:
    """Return an external commit as it is sent. Never in answer to `BranchTerminated` by itself."""
    data = CommitData(next_partition_key, _optional(group_info), None)
    return ExternalJoinRequest(decode(MLSMessage, mls_message), data)


def external_proposal(mls_message: bytes, *, partition: MaskedPartitionKey | None = None) -> ExternalProposalRequest:
    """Return a proposal from outside as it is sent, to a partition or to where group-info would answer from."""
    return ExternalProposalRequest(decode(MLSMessage, mls_message), partition)


def _optional(mls_message: bytes | None) -> MLSMessage | None:
    return None if mls_message is None else decode(MLSMessage, mls_message)


def _welcome_data(welcome: bytes | None, service_providers: Sequence[ProviderId]) -> WelcomeData | None:
    return None if welcome is None else WelcomeData(decode(MLSMessage, welcome), tuple(service_providers))
