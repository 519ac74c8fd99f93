"""Requests made from the bytes that an MLS library returns. Nothing here does any I/O.

All functions raise `ValueError` (a `WireError`) for bytes that are not an MLSMessage. An MLSMessage (RFC 9420 section
6) begins with version and wire format; some libraries return only the message inside it.
"""

from __future__ import annotations

from collections.abc import Sequence

from mimids.mls.code_points import ContentType
from mimids.mls.framing import MLSMessage
from mimids.wire.declare import decode
from mimids.wire.ids import MLS10, CipherSuite, GroupId, MaskedPartitionKey, PartitionKey, ProviderId, nameable_group_id
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
    """Return the request that sends an application message or a proposal; `partition_key` is the key of its epoch."""
    parsed = decode(MLSMessage, mls_message)
    if parsed.content_type not in (ContentType.APPLICATION, ContentType.PROPOSAL):
        raise ValueError("this is neither an application message nor a proposal")
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
    """Return the request that sends a commit; `next_partition_key` is the key of the epoch that the commit starts.

    `group_info` lets others join from outside. With a `welcome`, `service_providers` names, for each secret in the
    Welcome and in the same order, the provider of the added device. A provider of two added devices is named twice.
    """
    parsed = decode(MLSMessage, mls_message)
    if parsed.content_type is not ContentType.COMMIT:
        raise ValueError("this is not a commit")
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
    """Return the request that creates a group at the device's own provider; `partition_key` is the first epoch's key.

    `group_info`, with `ratchet_tree` unless the GroupInfo contains it, lets the hub follow the group's public state. A
    group id has 1 to 256 octets.
    """
    tree = None if ratchet_tree is None else RATCHET_TREE.decode(ratchet_tree)
    data = _welcome_data(welcome, service_providers)
    return CreateGroupRequest(
        nameable_group_id(group_id), MLS10, cipher_suite, partition_key, _optional(group_info), tree, data
    )


def external_join(
    mls_message: bytes, next_partition_key: PartitionKey, *, group_info: bytes | None = None
) -> ExternalJoinRequest:
    """Return the request that sends an external commit. Never join automatically after `BranchTerminated`."""
    data = CommitData(next_partition_key, _optional(group_info), None)
    return ExternalJoinRequest(decode(MLSMessage, mls_message), data)


def external_proposal(mls_message: bytes, *, partition: MaskedPartitionKey | None = None) -> ExternalProposalRequest:
    """Return the request that sends an external proposal to a partition, by default the one that group-info chooses."""
    return ExternalProposalRequest(decode(MLSMessage, mls_message), partition)


def _optional(mls_message: bytes | None) -> MLSMessage | None:
    return None if mls_message is None else decode(MLSMessage, mls_message)


def _welcome_data(welcome: bytes | None, service_providers: Sequence[ProviderId]) -> WelcomeData | None:
    return None if welcome is None else WelcomeData(decode(MLSMessage, welcome), tuple(service_providers))
