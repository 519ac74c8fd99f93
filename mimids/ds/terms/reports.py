"""Reports: somebody says that a hub or a follower breaks its terms, or points at a message.

(semantics: terms-and-reports)

The life of a report: *taken* (one row, the same words are one report), *replayed* (its evidence was held against what
is stored here), perhaps *passed on* by the operator, without the reporter's name, and *closed*. After a restart the
rows are all there is. The job replays at low priority: it may use a small share of a core, and it calls nobody, so a
report cannot make this provider do anything to a third one. Only what an operator passes on leaves here.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import attrs
import trio

from mimids.config import Config
from mimids.ds.groups.contradiction import Contradiction
from mimids.ds.groups.judging import Judged, MlsJudge
from mimids.ds.groups.policy import GroupPolicy
from mimids.ds.notifier import Notifier
from mimids.ds.ports import Clock, Peers
from mimids.errors import Malformed, MimiError, QuotaExceeded, StorageUnavailable
from mimids.mls.code_points import ContentType
from mimids.mls.framing import MLSMessage, PrivateMessage, PublicMessage
from mimids.mls.identity import provider_of
from mimids.mls.public_group import Valid
from mimids.mls.rules.verdict import Unknown
from mimids.store import groups, messages, partitions, providers, reports
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.partitions import Partition
from mimids.store.reports import NewReport, StoredReport
from mimids.values import Device, Follower, Milliseconds, Sender
from mimids.wire.base64url import base64url, from_base64url
from mimids.wire.codec import WireError
from mimids.wire.declare import decode
from mimids.wire.ids import GroupId, PartitionKey, ProviderId, provider_id

TOPIC: Final = "reports"  # wakes the job
EVIDENCE_MESSAGES: Final = 64
NOTE_OCTETS: Final = 4000
DAY_MILLISECONDS: Final = 86_400_000
REPLAY_SHARE: Final = 0.05  # of a core
OWN_REPORTS_PER_DAY: Final = 200  # of contradictions that this server finds itself
RETRY_SECONDS: Final = 60.0  # after another provider did not take a report
IDLE_SECONDS: Final = 600.0
CONTRADICTION: Final = "contradiction"

_KIND: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_KEYS_WRITTEN: Final = re.compile(
    r"(?<![0-9A-Fa-f])[0-9A-Fa-f]{32}(?![0-9A-Fa-f])|(?<![\w-])[\w-]{22}(?:==)?(?![\w=-])"
)


@attrs.frozen
class Report:
    """What a report says; nothing in it names who says it."""

    hub: ProviderId
    group_id: GroupId | None
    accused: str  # a provider's domain, or a user id
    kind: str
    note: str
    evidence: tuple[bytes, ...]  # MLSMessages

    @classmethod
    def read(cls, members: dict[str, Any]) -> Report:
        """Read a JSON object; unknown members are ignored, but not one that holds a partition key.

        Raises `ValueError`, `KeyError`, `TypeError`, or `Malformed` with what to change.
        """
        if any("partition_key" in name for name in members):
            raise Malformed("partition keys have no place in a report")
        group_id, evidence, note = members.get("group_id"), members.get("evidence") or [], members.get("note") or ""
        accused, kind = members["accused"], members["kind"]
        if not all(isinstance(each, str) for each in (accused, kind, note, *evidence)) or not _KIND.fullmatch(kind):
            raise ValueError
        if provider_of(accused.encode()) is None:
            provider_id(accused)
        if len(note.encode()) > NOTE_OCTETS or len(evidence) > EVIDENCE_MESSAGES:
            raise Malformed(f"at most {NOTE_OCTETS} octets of note and {EVIDENCE_MESSAGES} messages")
        return cls(
            provider_id(members["hub"]),
            None if group_id is None else GroupId(from_base64url(group_id)),
            accused,
            kind,
            note,
            tuple(_message(from_base64url(each)) for each in evidence),
        )

    def as_json(self) -> dict[str, Any]:
        """Return the members, as they travel."""
        return {
            "hub": self.hub,
            "group_id": None if self.group_id is None else base64url(self.group_id),
            "accused": self.accused,
            "kind": self.kind,
            "note": self.note,
            "evidence": [base64url(each) for each in self.evidence],
        }

    def digest(self) -> bytes:
        """Return the SHA-256 of what it says."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).digest()


def _message(octets: bytes) -> bytes:
    """Check that evidence is one MLSMessage and no more: a request would bring its partition key along."""
    try:
        decode(MLSMessage, octets)
    except WireError as error:
        raise Malformed("evidence is MLSMessages and nothing else, so no partition keys either") from error
    return octets


def _keys_in(note: str) -> Iterator[PartitionKey]:
    """Yield what could be a partition key in hex or base64url."""
    for found in _KEYS_WRITTEN.findall(note):
        try:
            octets = bytes.fromhex(found) if len(found) == 32 else from_base64url(found.rstrip("="))
        except ValueError:
            continue
        if len(octets) == PartitionKey.SIZE:
            yield PartitionKey(octets)


class Reports:
    """Takes reports; `run` is the job that replays evidence and passes on."""

    def __init__(
        self, config: Config, store: Store, clock: Clock, peers: Peers, notifier: Notifier, mls: MlsJudge
    ) -> None:
        self._config = config
        self._store = store
        self._clock = clock
        self._peers = peers
        self._notifier = notifier
        self._mls = mls
        self._found: deque[Contradiction] = deque(maxlen=OWN_REPORTS_PER_DAY)

    async def take(self, report: Report, reporter: Sender) -> int:
        """Store a report and return its id; the same words again are the same report.

        Raises `QuotaExceeded`, and `Malformed` where its note holds a partition key.
        """
        limits = self._config.limits
        limit = "device_reports_per_day" if isinstance(reporter, Device) else "provider_reports_per_day"
        now = self._clock.now()

        def names_a_partition(tx: Tx) -> bool:
            hub = providers.provider_row(tx, report.hub) or 0
            found = (partitions.find_partition(tx, hub, key.masks()) for key in _keys_in(report.note))
            return any(each is not None for each in found)

        def work(tx: Tx) -> tuple[int, bool] | MimiError:
            device = reporter.row if isinstance(reporter, Device) else None
            provider = providers.ensure_provider(tx, reporter.provider) if isinstance(reporter, Follower) else None
            known = reports.find_digest(tx, report.digest())
            if known is not None:
                return known, False
            allowed = getattr(limits, limit)
            since = Milliseconds(now - DAY_MILLISECONDS)
            if allowed and reports.count_since(tx, device, provider, since) >= allowed:
                return QuotaExceeded(limit)
            return reports.add(tx, NewReport(report.digest(), device, provider, **_fields(report)), now), True

        if await self._store.read(names_a_partition):
            raise Malformed("a partition key has no place in a report")
        answer = await self._store.write_shielded(work)
        if isinstance(answer, MimiError):
            raise answer
        row, is_new = answer
        if is_new:
            self._notifier.notify(TOPIC)
        return row

    def contradicted(self, found: Contradiction) -> None:
        """Take note of what a hub cannot have meant; the job makes a report of it."""
        self._found.append(found)
        self._notifier.notify(TOPIC)

    # --- the job ------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Report what this server found, look at evidence, pass on; for ever."""
        with self._notifier.listen(TOPIC) as waiter:
            task_status.started()
            while True:
                try:
                    await self._report_found()
                    idle = IDLE_SECONDS if await self._pass_on() else RETRY_SECONDS
                    report = await self._store.read(reports.next_to_replay)
                    if report is not None:
                        await self._replay(report)
                        continue
                except StorageUnavailable:
                    idle = RETRY_SECONDS
                await waiter.wait_at_most(self._clock, idle)

    async def _report_found(self) -> None:
        while self._found:
            found = self._found[0]
            evidence = (found.message,) if found.message else ()
            note = f"what it sent contradicts what it sent before: {found.rule}"
            report = Report(found.hub, found.group_id, found.hub, CONTRADICTION, note, evidence)
            now = self._clock.now()

            def work(tx: Tx, report: Report = report, now: Milliseconds = now) -> None:
                since = Milliseconds(now - DAY_MILLISECONDS)
                known = reports.find_digest(tx, report.digest()) is not None
                if not known and reports.count_since(tx, None, None, since) < OWN_REPORTS_PER_DAY:
                    reports.add(tx, NewReport(report.digest(), None, None, **_fields(report)), now)

            await self._store.write(work)
            self._found.popleft()

    async def _replay(self, report: StoredReport) -> None:
        """Hold each piece of evidence against what is stored, one at a time, and rest after each."""
        findings = []
        for octets in report.evidence:
            finding, seconds = await self._store.read(partial(self._timed, report, octets))
            findings.append(finding)
            await self._clock.sleep(seconds / REPLAY_SHARE - seconds)
        now = self._clock.now()
        await self._store.write(lambda tx: reports.note_replayed(tx, report.id, json.dumps(findings), now))

    def _timed(self, report: StoredReport, octets: bytes, tx: Tx) -> tuple[dict[str, Any], float]:
        started = time.thread_time()
        finding = self._finding(tx, report, octets)
        return finding, time.thread_time() - started

    def _finding(self, tx: Tx, report: StoredReport, octets: bytes) -> dict[str, Any]:
        """Return what is known here of a message: where it was sequenced, whether it is valid, what policy says."""
        message = decode(MLSMessage, octets)
        finding: dict[str, Any] = {
            "wire_format": message.wire_format.name.lower(),
            "epoch": message.epoch,
            "partition": None,
            "counter": None,
            "state": "unknown",
            "verdict": "unknown",
            "why": None,
        }
        group = groups.find_group(tx, providers.provider_row(tx, report.hub) or 0, message.group_id or GroupId(b""))
        if group is None or not isinstance(message.message, PublicMessage | PrivateMessage):
            return finding
        found = self._where(tx, group, message, messages.digest_of(octets))
        if found is None:
            return finding
        partition, counter = found
        finding |= {"partition": partition.masked_key.hex(), "counter": counter}
        if partition.state is not None:
            finding["state"] = "derived" if partition.state.derived else "claimed"
        try:
            judged = self._mls.judge(tx, group, partition, message)
            verdict = judged.judgement.verdict
            if isinstance(verdict, Unknown):
                finding["why"] = ", ".join(map(str, verdict.missing))
            elif isinstance(verdict, Valid):
                finding["verdict"] = "valid"
            self._check_policy(tx, report.hub, group, partition, judged)
        except MimiError as error:
            rule = error.members.get("rule")
            finding |= {"verdict": error.code, "why": f"{rule}: {error}" if rule else str(error)}
        return finding

    def _where(self, tx: Tx, group: Group, message: MLSMessage, digest: bytes) -> tuple[Partition, int | None] | None:
        """Return the partition that a message was sequenced in and its index, else one that it was made for."""
        candidates = partitions.partitions_of_epoch(tx, group.id, message.epoch or 0)
        for partition in candidates:
            if (sequenced := messages.find_repeat(tx, partition.id, digest)) is not None:
                return partition, sequenced.counter
        fitting = (each for each in candidates if self._mls.signature_fits(tx, group, each, message))
        return next(((each, None) for each in fitting), None)

    def _check_policy(self, tx: Tx, hub: ProviderId, group: Group, partition: Partition, judged: Judged) -> None:
        """Raise `PolicyRefused` for what every provider should have refused; who sent it is not asked."""
        rules = GroupPolicy(tx, self._mls.states, self._clock.now(), ours=hub == self._config.provider)
        is_commit = judged.message.content_type is ContentType.COMMIT
        ahead = self._mls.after_commit(judged, None) if is_commit else None
        rules.check(group, partition, judged, ahead, Follower(hub))

    async def _pass_on(self) -> bool:
        """Give others what the operator passes on; False if somebody is to be tried again."""
        after, all_taken = 0, True
        while (report := await self._store.read(partial(reports.next_to_pass_on, after=after))) is not None:
            after = report.id
            body = json.dumps(_nameless(report).as_json()).encode()
            try:
                await self._peers.call(
                    report.passed_on_to or report.hub, "POST", "/ds/v1/report", body, media_type="application/json"
                )
            except MimiError:
                all_taken = False
                continue
            now = self._clock.now()
            await self._store.write(partial(reports.note_passed_on, report=after, now=now))
        return all_taken


def _nameless(report: StoredReport) -> Report:
    """Return what a report says without its reporter, whom its note may name."""
    note, user = report.note, report.reporter_user
    if user is not None:
        written = user.decode("utf-8", "replace")
        names = "|".join(map(re.escape, (written, written.rpartition("/")[2])))
        note = re.sub(rf"(?<!\w)(?:{names})(?!\w)", "[removed]", note)
    elif report.by_device:
        note = ""  # the reporter is gone: nobody here knows what the note must not say
    return Report(report.hub, report.group_id, report.accused, report.kind, note, report.evidence)


def _fields(report: Report) -> dict[str, Any]:
    return {name: getattr(report, name) for name in ("hub", "group_id", "accused", "kind", "note", "evidence")}
