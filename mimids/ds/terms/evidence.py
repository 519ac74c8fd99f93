"""Evidence of reports, compared with stored messages and states (semantics: terms-and-reports)."""

from __future__ import annotations

from typing import Any

from mimids.ds.groups.judging import BranchTries, Judged, MlsJudge
from mimids.ds.groups.policy import GroupPolicy
from mimids.ds.groups.restrictions import source_for
from mimids.ds.ports import Clock
from mimids.errors import MimiError
from mimids.mls.code_points import ContentType
from mimids.mls.framing import MLSMessage, PrivateMessage, PublicMessage
from mimids.mls.public_group import Valid
from mimids.mls.rules.verdict import Unknown
from mimids.store import groups, messages, partitions, providers
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.partitions import Partition
from mimids.values import Follower
from mimids.wire.declare import decode
from mimids.wire.ids import GroupId, ProviderId


class EvidenceReplay:
    """Judges a message again, by the stored state of its partition."""

    def __init__(self, provider: ProviderId, clock: Clock, mls: MlsJudge) -> None:
        self._provider = provider
        self._clock = clock
        self._mls = mls

    def finding(self, tx: Tx, hub: ProviderId, evidence: bytes) -> dict[str, Any]:
        """Return the finding on a message at `hub`: where it was sequenced, and whether MLS and policy allow it."""
        message = decode(MLSMessage, evidence)
        finding: dict[str, Any] = {
            "wire_format": message.wire_format.name.lower(),
            "epoch": message.epoch,
            "partition": None,
            "counter": None,
            "state": "unknown",
            "verdict": "unknown",
            "why": None,
        }
        group = groups.find_group(tx, providers.provider_row(tx, hub) or 0, message.group_id or GroupId(b""))
        if group is None or not isinstance(message.message, PublicMessage | PrivateMessage):
            return finding
        found = self._find_partition(tx, group, message, messages.digest_of(evidence))
        if found is None:
            return finding
        partition, counter = found
        finding |= {"partition": partition.masked_key.hex(), "counter": counter}
        if partition.state is not None:
            finding["state"] = "derived" if partition.state.derived else "claimed"
        try:
            judged = self._mls.judge(tx, group, partition, message, BranchTries())
            verdict = judged.judgement.verdict
            if isinstance(verdict, Unknown):
                finding["why"] = ", ".join(map(str, verdict.missing))
            elif isinstance(verdict, Valid):
                finding["verdict"] = "valid"
            self._check_policy(tx, hub, group, partition, judged)
        except MimiError as error:
            rule = error.members.get("rule")
            finding |= {"verdict": error.code, "why": f"{rule}: {error}" if rule else str(error)}
        return finding

    def _find_partition(
        self, tx: Tx, group: Group, message: MLSMessage, digest: bytes
    ) -> tuple[Partition, int | None] | None:
        """Return a message's partition and counter; the counter is None if the message is only signed, not stored."""
        candidates = partitions.partitions_of_epoch(tx, group.id, message.epoch or 0)
        for partition in candidates:
            if (sequenced := messages.find_repeat(tx, partition.id, digest)) is not None:
                return partition, sequenced.counter
        fitting = (each for each in candidates if self._mls.signature_fits(tx, group, each, message))
        return next(((each, None) for each in fitting), None)

    def _check_policy(self, tx: Tx, hub: ProviderId, group: Group, partition: Partition, judged: Judged) -> None:
        """Raise `PolicyRefused` if policy refuses the message, whichever user sent it."""
        rules = GroupPolicy(tx, self._mls.states, self._clock.now(), source_for(hub, us=self._provider))
        is_commit = judged.message.content_type is ContentType.COMMIT
        ahead = self._mls.after_commit(judged, None) if is_commit else None
        rules.check(group, partition, judged, ahead, Follower(hub))
