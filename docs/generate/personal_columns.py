"""A declaration of what columns of the database say of a person; `privacy.py` prints the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs


@attrs.frozen
class Kept:
    """Columns of one table that are kept for the same reason and for the same time."""

    says: Mapping[str, str]  # what each column says, by its name
    why: str
    until: str
    deleted_by: str
    readers: str = "-"  # who else can read the columns, besides those who can read the disk or a backup


USER_REMOVED: Final = "removal of the user"
DEVICE_REMOVED: Final = "removal of the device"
SWEEP: Final = "the sweep"

# Columns that say nothing of a person: counters, states, and numbers of rows and providers.
OTHERS: Final[Mapping[str, str]] = {
    "schema_version": "version name digest applied_at",
    "settings": "name value",
    "sqlite_sequence": "name seq",
    "providers": "id domain",
    "federation_rules": "domain allowed changed_at",
    "reserved_groups": "digest",
    "audit": "id",
    "audit_kept": "id since",
    "changes": "id generation",
    "processes": "name since seen_at runs_jobs lag_ms",
    "hearing_processes": "process",
    "key_package_refs": "version cipher_suite reusable",
    "key_packages": "version cipher_suite",
    "ohttp_keys": "key_id created_at retire_at",
    "provider_keys": "public scheme private made_at retired_at",
    "device_signature_keys": "id",
    "removals": "id next_group next_stamp",
    "removal_keys": "removal",
    "departures": "id removal partition leaf state reason failures next_attempt_at",
    "groups": "id hub version cipher_suite encrypted_handshakes unmatched_bytes retention_due_at retention_waits"
    " deleted_at linear successor_hub",
    "messages": "seq partition counter next_masked_key",
    "proposals": "partition seq",
    "tree_nodes": "hash left_hash right_hash",
    "peers": "provider next_stamp failures next_attempt_at failing_since",
    "welcomes": "id",
    "outgoing_welcomes": "id welcome partition failures next_attempt_at",
    "unsendable_welcomes": "id partition",
    "inbox": "id",
    "bans": "id provider",
    "mutes": "id",
    "offered_terms": "provider revision digest changed_at accepted_revision accepted_at",
    "accepted_terms": "hub offered_revision fetched_at accepted_revision accepted_at acknowledged",
    "accepted_restrictions": "hub",
    "reports": "id reporter_provider hub kind replayed_at passed_on_at passed_on_to closed_at outcome",
    "tree_sweep": "id began_at running",
    "tree_notes": "hash",
    "moved": "partition stamp",
    "early_positions": "id",
    "requested_partitions": "id linear",
    "recoveries": "group_ref provider answered must_answer",
    "ohttp_replays": "id enc digest nonce",
    "partitions": "id group_ref hub masked_key parent opened_by detached epoch next_counter last_seq knowledge"
    " confirmation_tag reinitialized terminated_by terminated_at terminated_reason held_welcomes expired_at kept_from"
    " restored_end forked",
    "follows": "provider partition next_counter needs_opening suspended_reason presented",
}
