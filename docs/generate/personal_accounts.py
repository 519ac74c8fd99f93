"""What columns of users, devices, KeyPackages, bearer tokens and rates say of a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from docs.generate.personal_columns import DEVICE_REMOVED, SWEEP, USER_REMOVED, Kept

_TO_WAKE: Final = "to wake the device when something is new"
_SUBSCRIBED: Final = (
    "the device unsubscribes, gets a new token or is removed, or its push service ends the subscription"
)
_UNSUBSCRIBED: Final = (
    f"`DELETE /client/v1/push`; `mimids device rotate-token`; {DEVICE_REMOVED}; the answer 404 or 410"
)
_DEPARTURES: Final = "to remove the leaves of removed devices from their groups"
_DEPARTED: Final = "30 days are over, the device's KeyPackages have expired and its known leaves are gone"
_ONCE: Final = "so that a KeyPackage is handed out once, and a Welcome reaches its device"
_PACKAGE_KNOWN: Final = "90 days have passed since the end of the KeyPackage's lifetime"
_TO_CHECK_CLAIMS: Final = "to check claims"
_LISTED_UNTIL: Final = "30 days after the end of the token"

ACCOUNTS: Final[Mapping[str, tuple[Kept, ...]]] = {
    "users": (
        Kept(
            {
                "id": "the number of a user",
                "user_id": "the user id",
                "name_digest": "the SHA-256 of the user id without case",
                "created_at": "when the user was added",
                "suspended_at": "when the user was suspended",
            },
            "to recognise our users",
            "the user is removed",
            USER_REMOVED,
            "the user; somebody who only has the user id learns nothing from us",
        ),
    ),
    "reserved_names": (
        Kept(
            {"digest": "the SHA-256 of the user id of a removed user: somebody who guesses the id can check the guess"},
            "no new user gets the user id, because others may still use it for the removed user",
            "a user of this name is added with `--reuse`",
            "`mimids user add --reuse`",
            "those who may add users",
        ),
    ),
    "devices": (
        Kept(
            {
                "id": "the number of a device",
                "owner": "the user of the device",
                "name": "the name of the device",
                "created_at": "when the device was added",
            },
            "to authenticate devices",
            "the device is removed",
            DEVICE_REMOVED,
            "the user's devices",
        ),
        Kept(
            {"token_digest": "the SHA-256 of the device's token"},
            "to authenticate devices",
            "the device is removed",
            DEVICE_REMOVED,
        ),
        Kept(
            {"seen_on": "on which day (UTC) the device last made a request or had a stream open"},
            "to show the operator which devices are in use",
            "the device is removed",
            DEVICE_REMOVED,
            "`mimids device list`, the console",
        ),
    ),
    "push_subscriptions": (
        Kept(
            {
                "device": "a device",
                "p256dh": "the public key of the device's app for pushes",
                "auth": "a secret that is shared with the device's app",
            },
            _TO_WAKE,
            _SUBSCRIBED,
            _UNSUBSCRIBED,
            "the push service",
        ),
        Kept(
            {"endpoint": "the URL at which the push service accepts pushes for the device"},
            _TO_WAKE,
            _SUBSCRIBED,
            _UNSUBSCRIBED,
            "the push service; `mimids device list` shows only the host in the URL",
        ),
        Kept(
            {
                "next_stamp": "which messages the device already knew when the server last heard from it: all those of"
                " partitions with a lower stamp",
                "next_welcome": "which Welcomes the device already knew at that time: all rows of its inbox with a"
                " lower number",
                "last_contact": "a random number, a new one whenever the server hears from the device",
            },
            _TO_WAKE,
            _SUBSCRIBED,
            _UNSUBSCRIBED,
        ),
        Kept(
            {"is_woken": "whether the device was woken since the server last heard from it"},
            _TO_WAKE,
            _SUBSCRIBED,
            _UNSUBSCRIBED,
            "the push service; `mimids device list`",
        ),
    ),
    "early_positions": (
        Kept(
            {
                "device": "a device with a subscription",
                "hub": "the hub of a group that the device reads",
                "masked_key": "the masked key of a partition from which no message has come yet",
            },
            "so that the first message wakes the device",
            "the first message of the partition arrives; only the newest of each device are kept",
            f"the job that wakes devices; {DEVICE_REMOVED}",
        ),
    ),
    "connected_devices": (
        Kept(
            {
                "device": "a device with a subscription that is connected now",
                "process": "the name of the server's process that the device is connected to",
            },
            "so that the process that wakes devices does not wake this device; empty if one process serves the"
            " provider",
            "the connection ends",
            f"the end of the connection or of the process; {DEVICE_REMOVED}",
        ),
    ),
    "requested_partitions": (
        Kept(
            {
                "device": "a device that presented the key of a partition to the partition's hub",
                "hub": "the hub",
                "sha256": "the masked key (SHA-256) of a partition from which no message has come yet",
                "sha384": "the masked key (SHA-384)",
                "sha512": "the masked key (SHA-512)",
            },
            "so that the hub's pushes of the partition are accepted",
            "the first push of the partition arrives, the hub refuses the key, or the device leaves a group; only"
            " the newest of each device are kept",
            f"the push; {DEVICE_REMOVED}",
        ),
    ),
    "audit": (
        Kept(
            {
                "at": "when an operator ran a command",
                "actor": "the operator's user on the machine, or session of the console",
                "command": "which command",
                "arguments": "the arguments of the command: a user or device of ours as a number, a banned user of"
                " another provider by the user id; no secrets, no notes",
            },
            "to show who did what",
            "`audit_days`",
            SWEEP,
            "`mimids audit`, the console",
        ),
    ),
    "key_package_refs": (
        Kept(
            {
                "id": "the order of uploads",
                "expires_at": "when the lifetime of the KeyPackage ends",
            },
            _ONCE,
            _PACKAGE_KNOWN,
            SWEEP,
        ),
        Kept(
            {
                "ref": "a KeyPackage of the device; once the device is removed, a digest of the reference",
                "init_key": "the init key of the KeyPackage; once the device is removed, a digest of the key",
            },
            _ONCE,
            _PACKAGE_KNOWN,
            f"{SWEEP}; {DEVICE_REMOVED}, except for the digests",
        ),
        Kept(
            {"device": "the device that uploaded the KeyPackage"},
            _ONCE,
            f"{_PACKAGE_KNOWN}, or the device is removed",
            f"{SWEEP}; {DEVICE_REMOVED}",
        ),
        Kept(
            {"turn": "the order in which the user's devices were last claimed from"},
            "so that the device claimed from least recently is next",
            f"{_PACKAGE_KNOWN}, or the device is removed",
            f"{SWEEP}; {DEVICE_REMOVED}",
        ),
        Kept(
            {
                "token": "the token with which the KeyPackage was claimed",
                "claimed_at": "the hour of the claim; later only the fact that the KeyPackage was claimed",
            },
            "for the abuse rule, which counts claims without a Welcome; empty if the rule is off",
            "the Welcome arrives, or `abuse_window_hours` are over",
            f"the Welcome; {SWEEP}; {DEVICE_REMOVED}",
        ),
    ),
    "key_packages": (
        Kept(
            {
                "id": "the KeyPackage",
                "device": "the device that uploaded the KeyPackage",
                "last_resort": "whether the KeyPackage is a last resort",
                "expires_at": "when the lifetime of the KeyPackage ends",
                "body": "the KeyPackage, with the user id",
            },
            "to hand the KeyPackage out",
            "the KeyPackage is claimed or expires",
            f"the claim; {SWEEP}; {DEVICE_REMOVED}",
            "the requester who claims the KeyPackage",
        ),
    ),
    "tokens": (
        Kept(
            {
                "id": "the number of a bearer token",
                "owner": "the user whose KeyPackages the token is for",
                "scheme": "whether the token is for one requester or for all",
                "label": "a note of the user or the operator, which may name the requester",
                "issuer_device": "which device issued the token",
                "state": "whether the token is live, revoked or banned",
                "created_at": "when the token was issued",
                "ended_at": "the hour in which the token ended",
                "expires_at": "when the token expires",
                "uses_left": "how many claims are left",
                "rate_claims": "the rate of the token: the number of claims",
                "rate_seconds": "the rate of the token: the period",
            },
            _TO_CHECK_CLAIMS,
            _LISTED_UNTIL,
            f"{SWEEP}; {USER_REMOVED}",
            "the user's devices",
        ),
        Kept({"digest": "the SHA-256 of the token"}, _TO_CHECK_CLAIMS, _LISTED_UNTIL, f"{SWEEP}; {USER_REMOVED}"),
        Kept(
            {
                "rate_started_at": "the period of the token's rate in which it was last used; 0 without a rate",
                "rate_used": "how often the token was used in that period",
            },
            "to enforce the rate of the token",
            "the period ends",
            f"{SWEEP}; {USER_REMOVED}",
        ),
        Kept(
            {
                "abuse_started_at": "the hour of the first claim without a Welcome",
                "unanswered_claims": "the number of claims without a Welcome",
            },
            "for the abuse rule; empty if the rule is off",
            "all Welcomes arrive, or `abuse_window_hours` are over",
            f"the Welcomes; {SWEEP}; {USER_REMOVED}",
        ),
        Kept(
            {"warned_at": "the hour in which the abuse rule applied"},
            "for the abuse rule; empty if the rule is off",
            "the token is deleted",
            f"{SWEEP}; {USER_REMOVED}",
            "the user's devices",
        ),
    ),
    "rate_buckets": (
        Kept(
            {
                "rate": "which rate",
                "key": "the number of a device, a user id, or a provider",
                "tokens_left": "how much of the rate is left, in whole tokens",
                "updated_at": "when the rate was used, rounded to a minute or, for a slow rate, to a 24th of the"
                " time that a refill takes",
            },
            "so that a restart does not refill rates (the rate of fetches refills within minutes and has no row)",
            "the rate is full again",
            f"the job that saves rates; {DEVICE_REMOVED}; {USER_REMOVED}",
        ),
    ),
    "ohttp_replays": (
        Kept(
            {
                "keep_until": "the end of the replay window after the Date of a request",
                "sealed_at": "the second in which the answer was sealed",
                "items": "the last resorts that were handed out",
                "response": "the sealed answer",
            },
            "so that a repeated request gets the same answer and uses up no KeyPackage",
            "two times `replay_window_seconds`",
            f"the next claims; {SWEEP}",
            "the sender of the request",
        ),
    ),
    "ohttp_replay_packages": (
        Kept(
            {
                "id": "a last resort that was handed out",
                "body": "the KeyPackage",
                "keep_until": "the end of the replay window",
            },
            "so that a repeated request gets the same answer",
            "two times `replay_window_seconds`",
            f"the next claims; {SWEEP}; {DEVICE_REMOVED}",
            "the sender of the request",
        ),
    ),
    "device_signature_keys": (
        Kept(
            {
                "device": "a device",
                "digest": "the SHA-256 of a signature key in a KeyPackage that the device uploaded",
            },
            "to remove the device's leaves from groups when the device is removed",
            "the device is removed, or uploads 4,096 newer keys",
            DEVICE_REMOVED,
        ),
    ),
    "removals": (
        Kept(
            {
                "user_digest": "a SHA-256 of the user id: somebody who guesses the id can check the guess",
                "device_digest": "a SHA-256 of the user id with the name of the device",
                "removed_at": "when the user or device was removed",
                "packages_expire_at": "when the last KeyPackage of the device expires",
            },
            _DEPARTURES,
            _DEPARTED,
            "the job",
        ),
    ),
    "removal_keys": (
        Kept({"digest": "the SHA-256 of a signature key of a removed device"}, _DEPARTURES, _DEPARTED, "the job"),
    ),
    "departures": (
        Kept(
            {
                "group_ref": "a group that a removed device is in or was seen in",
                "identity": "the identity in the leaf of the device",
                "message": "the proposal to remove the leaf",
            },
            _DEPARTURES,
            "the leaf is gone; for an unknown leaf: 30 days are over and the device's KeyPackages have expired",
            "the job; deletion of the group",
            "members of the group and followers, except for groups whose members are not known",
        ),
    ),
    "ohttp_keys": (
        Kept(
            {"private_key": "a key that opens recorded requests"},
            "to open requests",
            "`rotate_days` and `grace_days` of `[ohttp]`",
            "the job that rotates keys",
        ),
    ),
}
