"""Which modules are mutated, and the test files that must notice."""

from __future__ import annotations

from typing import Final

_SEQUENCING: Final = (
    "ds/groups/sequencing/test_partition_writer.py",
    "ds/groups/test_from_outside.py",
    "ds/groups/test_commit_welcomes.py",
    "ds/groups/test_detached_claims.py",
    "ds/groups/test_positions.py",
    "ds/groups/test_held_welcomes.py",
    "ds/groups/test_successors.py",
    "ds/groups/test_linear.py",
    "ds/limits/test_budgets.py",
    "ds/following/test_recovery.py",
    "ds/groups/test_policy.py",
    "ds/groups/test_sequencing.py",
)
_FROM_OUTSIDE: Final = (
    "ds/groups/test_from_outside.py",
    "ds/groups/test_detached_claims.py",
    "ds/groups/test_successors.py",
    "ds/groups/test_linear.py",
    "ds/groups/test_sequencing.py",
)
_FOLLOWING: Final = (
    "ds/following/test_intake.py",
    "ds/following/test_following.py",
    "ds/limits/test_budgets.py",
    "ds/upkeep/test_retention.py",
    "abuse/test_intake.py",
)
_RECEIVING: Final = (
    "ds/following/test_receiver.py",
    "ds/following/test_intake.py",
    "abuse/test_counters.py",
    "abuse/test_intake.py",
    "abuse/test_recovery.py",
    "ds/following/test_recovery_answers.py",
)
_STOCK: Final = (
    "ds/key_packages/test_claims.py",
    "ds/key_packages/test_siblings.py",
    "ds/key_packages/test_stock.py",
    "ds/key_packages/test_tokens.py",
    "ds/upkeep/test_sweeper.py",
)
_RETENTION: Final = (
    "ds/upkeep/test_positions_after_sweeps.py",
    "ds/upkeep/test_sweeper.py",
    "ds/upkeep/test_retention.py",
    "abuse/test_clock_jumps.py",
    "ds/limits/test_budgets.py",
    "ds/test_full_disk.py",
)
_RECOVERY: Final = (
    "ds/following/test_recovery.py",
    "ds/following/test_recovery_asking.py",
    "ds/following/test_recovery_waiting.py",
    "ds/following/test_recovery_answers.py",
    "abuse/test_recovery.py",
)
_DELIVERY: Final = (
    "ds/following/test_pushes.py",
    "ds/following/test_delivery_retries.py",
    "ds/following/test_delivery.py",
    "ds/following/test_twins.py",
    "ds/following/test_several_processes.py",
    "ds/test_early_retries.py",
    "abuse/test_delivery.py",
)
_FOLLOWED: Final = (
    "ds/following/test_followed_groups.py",
    "ds/following/test_pending_requests.py",
    "ds/following/test_sync.py",
    "ds/following/test_following.py",
    "ds/following/test_intake.py",
    "ds/following/test_several_processes.py",
    "abuse/test_intake.py",
    "ds/departures/test_departures.py",
)
_WELCOMES: Final = (
    "ds/following/test_welcomes.py",
    "ds/groups/test_welcome_status.py",
    "ds/groups/test_held_welcomes.py",
    "ds/test_early_retries.py",
    "privacy/test_welcome_parts.py",
    "abuse/test_welcomes.py",
    "abuse/test_clock_jumps.py",
)
_REPORTS: Final = ("ds/terms/test_reports.py", "abuse/test_reports.py", "ds/test_early_retries.py")
_DEPARTURES: Final = ("ds/departures/test_departures.py", "ds/departures/test_provider_keys.py")
_WAKE_UPS: Final = (
    "ds/wake_ups/test_push_queue.py",
    "ds/wake_ups/test_listening.py",
    "ds/wake_ups/test_job.py",
)
_WEB_PUSH: Final = ("web_push/test_message.py", "web_push/test_subscription.py", "web_push/test_vapid.py")
_FRAMING: Final = (
    "http/server/test_plain_requests.py",
    "http/server/test_direct_path.py",
    "http/server/test_protocols.py",
    "http/server/test_connection.py",
    "abuse/test_frames.py",
    "abuse/test_heads.py",
)
_TREE: Final = (
    "mls/rules/test_tree.py",
    "mls/tree/test_ratchet_tree.py",
    "mls/rules/test_verdict.py",
    "mls/test_public_group.py",
)
_RULES: Final = (
    "mls/rules/test_verdict.py",
    "mls/test_public_group.py",
    "mls/test_knowledge.py",
    "mls/test_public_group_flips.py",
    "mls/test_public_group_histories.py",
)

# By module, as a path below mimids/: the files below tests/ that are run for each of its mutants, cheapest first.
TARGETS: Final[dict[str, tuple[str, ...]]] = {
    "ds/groups/sequencing/transaction.py": _SEQUENCING,
    "ds/groups/sequencing/commits.py": _SEQUENCING,
    "ds/groups/sequencing/joins.py": _FROM_OUTSIDE,
    "ds/groups/sequencing/partition_writer.py": _SEQUENCING,
    "ds/groups/sequencing/refused_proposals.py": _FROM_OUTSIDE,
    "ds/groups/sequencing/repeats.py": _SEQUENCING,
    "ds/groups/sequencing/submitter.py": _SEQUENCING,
    "ds/groups/sequencing/look_ahead.py": ("ds/groups/sequencing/test_look_ahead.py",),
    "store/openers.py": (
        "ds/groups/test_commit_welcomes.py",
        "ds/limits/test_budgets.py",
        "ds/upkeep/test_retention.py",
        "ds/groups/test_detached_claims.py",
    ),
    "store/terminations.py": (
        "store/test_partitions.py",
        "ds/groups/test_sequencing.py",
        "ds/groups/test_successors.py",
    ),
    "ds/following/cursors.py": (
        "ds/following/test_cursors.py",
        "ds/devices/test_streams.py",
        "ds/upkeep/test_retention.py",
        "ds/wake_ups/test_job.py",
        "ds/wake_ups/test_several_processes.py",
    ),
    "ds/following/delivery.py": _DELIVERY,
    "ds/following/pushes.py": _DELIVERY,
    "ds/following/followed_groups.py": _FOLLOWED,
    "ds/following/pending_requests.py": _FOLLOWED,
    "ds/following/sync.py": _FOLLOWED,
    "ds/following/incoming_welcomes.py": _WELCOMES,
    "ds/following/outgoing_welcomes.py": _WELCOMES,
    "ds/following/following.py": _FOLLOWING,
    "ds/following/intake.py": _RECEIVING,
    "ds/following/receiver.py": _RECEIVING,
    "ds/following/slices.py": (
        "ds/following/test_slices.py",
        "ds/following/test_receiver.py",
        "abuse/test_intake.py",
    ),
    "ds/departures/departures.py": _DEPARTURES,
    "ds/departures/leaves.py": _DEPARTURES,
    "ds/departures/provider_keys.py": _DEPARTURES,
    "ds/departures/searching.py": _DEPARTURES,
    "store/departures.py": _DEPARTURES,
    "ds/key_packages/batches.py": ("privacy/test_batches.py",),
    "ds/key_packages/claims.py": _STOCK,
    "ds/key_packages/gateway_keys.py": ("ds/key_packages/test_gateway_keys.py", "privacy/test_gateway_keys.py"),
    "ds/key_packages/relay.py": (
        "ds/key_packages/test_relay.py",
        "privacy/test_relay_log.py",
        "privacy/test_batches.py",
    ),
    "ds/key_packages/replays.py": ("abuse/test_replay.py", "ds/key_packages/test_gateway.py"),
    "ds/key_packages/steps.py": ("ds/key_packages/test_steps.py",),
    "ds/key_packages/stock.py": _STOCK,
    "ds/key_packages/tokens.py": _STOCK,
    "store/tokens.py": _STOCK,
    "ds/key_packages/gateway.py": (
        "ds/key_packages/test_claims.py",
        "ds/key_packages/test_gateway.py",
        "abuse/test_gateway.py",
        "abuse/test_replay.py",
        "privacy/test_outcomes.py",
    ),
    "ohttp/gateway.py": ("ohttp/test_gateway.py", "ds/key_packages/test_gateway.py"),
    "ds/upkeep/retention.py": _RETENTION,
    "ds/upkeep/retention_plan.py": (
        "ds/upkeep/test_retention_plan.py",
        "ds/upkeep/test_retention.py",
        "ds/upkeep/test_positions_after_sweeps.py",
    ),
    "ds/upkeep/sweeper.py": (*_RETENTION, "ds/commands/test_audit.py"),
    "ds/upkeep/acknowledging.py": ("ds/upkeep/test_acknowledging.py",),
    "ds/upkeep/pacing.py": ("ds/upkeep/test_pacing.py",),
    "ds/upkeep/tree_sweep.py": ("ds/upkeep/test_tree_sweep.py", "ds/upkeep/test_retention.py"),
    "store/retention.py": _RETENTION,
    "ds/following/recovered_rows.py": _RECOVERY,
    "ds/following/recovery_answers.py": _RECOVERY,
    "ds/following/recovery_as_follower.py": _RECOVERY,
    "ds/following/recovery_as_hub.py": _RECOVERY,
    "ds/terms/accepted.py": ("ds/terms/test_accepted.py", "ds/terms/test_hub_terms.py"),
    "ds/terms/hub_terms.py": ("ds/terms/test_hub_terms.py", "ds/terms/test_accepted.py"),
    "ds/terms/offered.py": ("ds/terms/test_offered.py",),
    "ds/terms/banned_providers.py": (
        "ds/terms/test_banned_providers.py",
        "ds/terms/test_peers.py",
        "ds/terms/test_offered.py",
    ),
    "ds/terms/peers.py": ("ds/terms/test_peers.py", "ds/terms/test_offered.py", "ds/terms/test_hub_terms.py"),
    "ds/terms/evidence.py": _REPORTS,
    "ds/terms/report.py": _REPORTS,
    "ds/terms/reports.py": _REPORTS,
    "http/server/tls.py": (
        "http/server/test_tls.py",
        "http/server/test_certificates.py",
        "abuse/test_peer_connections.py",
    ),
    "http/api/admission.py": ("http/api/test_admission.py", "http/api/test_table.py", "abuse/test_large_answers.py"),
    "http/server/direct_path.py": _FRAMING,
    "http/server/plain_requests.py": _FRAMING,
    "http/server/protocols.py": _FRAMING,
    "ds/wake_ups/job.py": _WAKE_UPS,
    "ds/wake_ups/listening.py": _WAKE_UPS,
    "ds/wake_ups/own_messages.py": _WAKE_UPS,
    "ds/wake_ups/push_queue.py": _WAKE_UPS,
    "ds/wake_ups/vapid_key.py": _WAKE_UPS,
    "store/push_subscriptions.py": _WAKE_UPS,
    "http/peers/push_services.py": ("http/peers/test_push_services.py",),
    "web_push/message.py": _WEB_PUSH,
    "web_push/subscription.py": _WEB_PUSH,
    "web_push/vapid.py": _WEB_PUSH,
    "policy/room.py": ("policy/test_room.py", "policy/test_rules.py", "policy/test_model.py"),
    "policy/rules.py": ("policy/test_rules.py", "policy/test_model.py"),
    "mls/rules/tree.py": _TREE,
    "mls/tree/math.py": _TREE,
    "mls/tree/ratchet_tree.py": _TREE,
    "mls/tree/rows.py": _TREE,
    "mls/tree/subtree.py": _TREE,
    "mls/rules/checks.py": _RULES,
    "mls/rules/commit.py": _RULES,
    "mls/rules/parameters.py": _RULES,
    "mls/rules/proposal.py": _RULES,
    "mls/rules/proposal_list.py": _RULES,
    "mls/rules/verdict.py": _RULES,
}
