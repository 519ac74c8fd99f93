"""What columns of groups, messages, Welcomes, policy and reports say of a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from docs.generate.personal_columns import DEVICE_REMOVED, SWEEP, Kept

GROUPS: Final[Mapping[str, tuple[Kept, ...]]] = {
    "groups": (
        Kept(
            {
                "group_id": "a group; a client may choose an id that reveals something",
                "creation_digest": "the SHA-256 of the request that created the group",
                "created_at": "when the group was created here or first heard of",
                "departed": "whether a device of ours was in the group and then removed",
                "successor_group_id": "the group that replaces this one",
            },
            "to sequence and deliver the messages of the group",
            "for ever; if the group was only pushed here and no device here joined it, `welcome_days`",
            "nothing; for a group that was only pushed here, the sweep",
            "followers",
        ),
        Kept(
            {"creator_device": "the device that created the group"},
            "for the quota of groups, and so that the creator may repeat the creation",
            "the device is removed",
            DEVICE_REMOVED,
        ),
    ),
    "partitions": (
        Kept(
            {
                "group_context": "the public state of the group",
                "group_info": "the public state of the group, signed by a member",
                "root_hash": "the root of the tree in `tree_nodes`, which has the members",
                "opened_at": "when a commit opened the partition",
            },
            "for joiners and for policy rules",
            "the partition expires (`message_days` or `acknowledged_message_days`); tips of open branches never expire",
            SWEEP,
            "members, followers",
        ),
        Kept(
            {
                "opener_provider": "the provider that sent the commit that opened the partition",
                "opener_device": "the device of ours that sent the commit",
            },
            "for quotas, and because only the sender of a commit may add data that the commit lacked",
            "the partition expires, or the device is removed",
            f"{SWEEP}; {DEVICE_REMOVED}",
        ),
    ),
    "messages": (
        Kept(
            {"accepted_at": "when the message was sequenced", "kind": "whether the message is a commit"},
            "so that a repeat gets the first answer",
            "`repeat_days`",
            SWEEP,
            "members, followers",
        ),
        Kept(
            {"digest": "the SHA-256 of the message", "digest_key": "the beginning of that SHA-256"},
            "so that a repeat gets the first answer",
            "`repeat_days`",
            SWEEP,
        ),
        Kept(
            {
                "body": "the message; a public handshake names its sender",
                "group_info": "the GroupInfo of a commit, with the members",
            },
            "to deliver the message",
            "`acknowledged_message_days` to `message_days`",
            SWEEP,
            "members, followers",
        ),
    ),
    "proposals": (
        Kept(
            {
                "ref": "a proposal",
                "proposal_type": "the type of the proposal",
                "refusal": "why the proposal was refused",
            },
            "because the next commit may cover the proposal",
            "the partition of the proposal expires",
            SWEEP,
            "members",
        ),
    ),
    "tree_nodes": (
        Kept(
            {"node": "a member's leaf with the user id, or an inner node"},
            "as part of the public state of groups",
            "no partition refers to it",
            SWEEP,
            "members, followers",
        ),
    ),
    "welcomes": (
        Kept(
            {"body": "a Welcome, encrypted for its recipients"},
            "to deliver the Welcome",
            "all devices here that it is for have acknowledged it; at a hub, `welcome_days` if it went to another"
            " provider",
            f"the acknowledgement; {SWEEP}; {DEVICE_REMOVED}",
            "the recipients of the Welcome",
        ),
        Kept(
            {"digest": "the SHA-256 of the Welcome"},
            "so that a repeat is not delivered again",
            "`welcome_days`",
            f"{SWEEP}; {DEVICE_REMOVED}",
            "the recipients of the Welcome",
        ),
        Kept(
            {"stored_at": "the hour in which the Welcome came"},
            "to delete the Welcome after `welcome_days`",
            "`welcome_days`",
            SWEEP,
        ),
    ),
    "outgoing_welcomes": (
        Kept(
            {
                "refs": "KeyPackages of the users added",
                "provider": "the provider of these users",
                "state": "whether the Welcome was delivered",
                "outcome": "why the Welcome was not delivered",
                "created_at": "when the commit of the Welcome came",
            },
            "to deliver the Welcome, also again to a restored provider, and to tell the sender what became of it",
            "`welcome_days`",
            f"{SWEEP}; {DEVICE_REMOVED}, for our own devices",
            "members of the group",
        ),
        Kept(
            {"sender": "the device or provider that sent the commit"},
            "for the quota of Welcomes that wait",
            "the Welcome is delivered, refused or expires",
            f"the outcome; {DEVICE_REMOVED}",
        ),
    ),
    "unsendable_welcomes": (
        Kept(
            {"refs": "KeyPackages of users at providers that we do not contact", "created_at": "when the commit came"},
            "to tell the sender what became of the Welcome",
            "`welcome_days`",
            SWEEP,
            "members of the group",
        ),
    ),
    "expected_welcomes": (
        Kept(
            {
                "ref": "a KeyPackage of a device",
                "device": "the device",
                "hub": "the hub that announced a Welcome for the KeyPackage",
                "accepted_at": "the hour in which the hub announced the Welcome",
                "matched_group": "the group that the hub may push because of this KeyPackage",
            },
            "so that a Welcome is accepted only from the hub that announced it",
            "`welcome_days`",
            f"{SWEEP}; {DEVICE_REMOVED}",
        ),
    ),
    "inbox": (
        Kept(
            {
                "device": "a device",
                "welcome": "a Welcome for the device",
                "hub": "the hub of the group",
                "arrived_at": "the hour in which the Welcome came",
                "acknowledged_at": "the hour in which the device acknowledged the Welcome",
            },
            "to deliver the Welcome once",
            "`welcome_days`",
            f"{SWEEP}; {DEVICE_REMOVED}",
            "the device",
        ),
    ),
    "participations": (
        Kept(
            {
                "group_ref": "a group",
                "device": "a device that is or was in the group",
                "joined_at": "the hour in which the device was first seen in the group",
                "left_at": "when the device left",
            },
            "to end pushes of a group that no device here is in, and for retention",
            "`welcome_days` after the device left; the device is removed",
            f"{SWEEP}; {DEVICE_REMOVED}",
        ),
    ),
    "device_cursors": (
        Kept(
            {
                "device": "a device",
                "partition": "a partition that the device reads",
                "next_counter": "the counter up to which the device has read there",
                "seen_at": "the hour in which the device last read there",
            },
            "to keep messages that a device still has to fetch",
            "a later position replaces it",
            f"the later position; {DEVICE_REMOVED}",
        ),
    ),
    "restored_readers": (
        Kept(
            {
                "partition": "a partition that was restored",
                "device": "a device that has read that partition since",
            },
            "to tell devices that messages were lost by a restore",
            "the device is removed",
            DEVICE_REMOVED,
        ),
    ),
    "bans": (
        Kept(
            {
                "user_id": "a banned user",
                "created_at": "when the ban began",
                "expires_at": "when the ban ends",
            },
            "to refuse the user",
            "the operator removes the ban",
            "`mimids ban remove`",
            "followers",
        ),
        Kept(
            {"reason": "a note of the operator on the ban"},
            "to remind the operator why the user is banned",
            "the operator removes the ban",
            "`mimids ban remove`",
        ),
    ),
    "mutes": (
        Kept(
            {
                "user_id": "a muted user",
                "group_id": "the group in which the user is muted",
                "created_at": "when the mute began",
                "expires_at": "when the mute ends",
            },
            "to refuse the user's messages",
            "the operator removes the mute",
            "`mimids limit unmute`",
            "followers",
        ),
        Kept(
            {"reason": "a note of the operator on the mute"},
            "to remind the operator why the user is muted",
            "the operator removes the mute",
            "`mimids limit unmute`",
        ),
    ),
    "accepted_restrictions": (
        Kept(
            {"user_id": "a user of ours", "group_id": "a group in which the hub of the group banned or muted the user"},
            "to keep the terms of the hub",
            "the hub lifts the ban or mute",
            "newer terms of the hub",
        ),
    ),
    "accepted_terms": (
        Kept(
            {"offered": "the newest terms of a hub, which name banned users", "accepted": "the terms in force"},
            "to keep the terms of the hub",
            "newer terms",
            "newer terms of the hub",
        ),
    ),
    "reports": (
        Kept(
            {
                "reporter_device": "the device that reported; 0 once the device is removed",
                "digest": "the SHA-256 of the report and the reporter; once the device is removed, its first 6 octets",
            },
            "for quotas, and so that a repeated report counts once",
            "`report_days`",
            f"{SWEEP}; {DEVICE_REMOVED}",
            "-",
        ),
        Kept(
            {
                "accused": "the accused user",
                "group_id": "the group",
                "note": "the text of the reporter",
                "evidence": "messages",
                "findings": "what the evidence shows",
                "received_at": "when the report came",
            },
            "so that the operator can decide on the report",
            "`report_days`",
            SWEEP,
            "the provider to which the operator passes the report on",
        ),
    ),
}
