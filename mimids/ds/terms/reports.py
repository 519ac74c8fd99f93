"""Reports on hubs, followers, users and messages (semantics: terms-and-reports).

A report is *received* (one row; a second report with the same words is the same row), *replayed* (its evidence is
compared with what is stored here), perhaps *passed on* by the operator without the reporter's name, and *closed*.
Only the rows count after a restart.

Evidence is replayed at low priority, with a small share of a core. A replay calls no other provider, so a report cannot
make this provider call a third one. Only reports that an operator passes on are sent to other providers.
"""

from __future__ import annotations

import json
import time
from collections import deque
from functools import partial
from typing import Any, Final

import trio

from mimids.config import Config
from mimids.ds.groups.contradiction import Contradiction
from mimids.ds.notifier import Notifier
from mimids.ds.ports import Clock, Peers
from mimids.ds.terms.evidence import EvidenceReplay
from mimids.ds.terms.report import Report, possible_keys, without_reporter
from mimids.errors import Malformed, MimiError, QuotaExceeded, StorageUnavailable
from mimids.store import partitions, providers, reports
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Tx
from mimids.store.reports import NewReport, StoredReport
from mimids.values import Device, DeviceRow, Follower, Milliseconds, Sender

TOPIC: Final = "reports"  # wakes the job
DAY_MILLISECONDS: Final = 86_400_000
REPLAY_SHARE: Final = 0.05  # of a core
OWN_REPORTS_PER_DAY: Final = 200  # of contradictions that this server finds itself
RETRY_SECONDS: Final = 60.0  # after another provider refused a report or could not be reached
IDLE_SECONDS: Final = 600.0
CONTRADICTION: Final = "contradiction"


class Reports:
    """Receives reports; `run` is the job that replays evidence and passes reports on."""

    def __init__(
        self, config: Config, store: Store, clock: Clock, peers: Peers, notifier: Notifier, evidence: EvidenceReplay
    ) -> None:
        self._config = config
        self._store = store
        self._clock = clock
        self._peers = peers
        self._notifier = notifier
        self._evidence = evidence
        self._contradictions: deque[Contradiction] = deque(maxlen=OWN_REPORTS_PER_DAY)

    async def receive(self, report: Report, reporter: Sender) -> int:
        """Store a report and return its id; a report with the same words has the same id.

        Raises `QuotaExceeded`, and `Malformed` if the note contains a partition key.
        """
        if await self._store.read(partial(_note_has_a_key, report)):
            raise Malformed("the note contains a partition key; remove it")
        limit = "device_reports_per_day" if isinstance(reporter, Device) else "provider_reports_per_day"
        quota: int = getattr(self._config.limits, limit)
        now = self._clock.now()

        def work(tx: Tx) -> tuple[int, bool] | MimiError:
            device = reporter.row if isinstance(reporter, Device) else None
            provider = providers.ensure_provider(tx, reporter.provider) if isinstance(reporter, Follower) else None
            known = reports.find_digest(tx, report.digest())
            if known is not None:
                return known, False
            since = Milliseconds(now - DAY_MILLISECONDS)
            if quota and reports.count_since(tx, device, provider, since) >= quota:
                return QuotaExceeded(limit)
            return reports.add(tx, _new_row(report, device, provider), now), True

        row, is_new = await self._store.write_or_refuse(work)
        if is_new:
            self._notifier.notify(TOPIC)
        return row

    def note_contradiction(self, contradiction: Contradiction) -> None:
        """Note that a hub contradicted itself; the job stores a report on it."""
        self._contradictions.append(contradiction)
        self._notifier.notify(TOPIC)

    # --- the job ------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Report contradictions, pass reports on and replay evidence, until cancelled."""
        with self._notifier.listen(TOPIC) as waiter:
            task_status.started()
            while True:
                try:
                    await self._report_contradictions()
                    idle = IDLE_SECONDS if await self._pass_on() else RETRY_SECONDS
                    report = await self._store.read(reports.next_to_replay)
                    if report is not None:
                        await self._replay(report)
                        continue
                except StorageUnavailable:
                    idle = RETRY_SECONDS
                await waiter.wait_at_most(self._clock, idle)

    async def _report_contradictions(self) -> None:
        while self._contradictions:
            found = self._contradictions[0]
            evidence = (found.message,) if found.message else ()
            note = f"what it sent contradicts what it sent before: {found.rule}"
            report = Report(found.hub, found.group_id, found.hub, CONTRADICTION, note, evidence)
            await self._store.write(partial(_store_own_report, report, self._clock.now()))
            self._contradictions.popleft()

    async def _replay(self, report: StoredReport) -> None:
        """Compare each piece of evidence with what is stored, one at a time, and sleep after each."""
        findings = []
        for evidence in report.evidence:
            finding, seconds = await self._store.read(partial(self._timed_finding, report, evidence))
            findings.append(finding)
            await self._clock.sleep(seconds / REPLAY_SHARE - seconds)
        now = self._clock.now()
        await self._store.write(lambda tx: reports.note_replayed(tx, report.id, json.dumps(findings), now))

    def _timed_finding(self, report: StoredReport, evidence: bytes, tx: Tx) -> tuple[dict[str, Any], float]:
        """Return a finding and the seconds of a core that it took."""
        started = time.thread_time()
        finding = self._evidence.finding(tx, report.hub, evidence)
        return finding, time.thread_time() - started

    async def _pass_on(self) -> bool:
        """Send what the operator passed on to other providers; return False if one has to be tried again."""
        after, all_sent = 0, True
        while (report := await self._store.read(partial(reports.next_to_pass_on, after=after))) is not None:
            after = report.id
            body = json.dumps(without_reporter(report).as_json()).encode()
            try:
                await self._peers.call(
                    report.passed_on_to or report.hub, "POST", "/ds/v1/report", body, media_type="application/json"
                )
            except MimiError:
                all_sent = False
                continue
            now = self._clock.now()
            await self._store.write(partial(reports.note_passed_on, report=after, now=now))
        return all_sent


def _note_has_a_key(report: Report, tx: Tx) -> bool:
    """Tell whether a report's note contains the key of a partition that is known here."""
    hub = providers.provider_row(tx, report.hub) or 0
    found = (partitions.find_partition(tx, hub, key.masks()) for key in possible_keys(report.note))
    return any(each is not None for each in found)


def _store_own_report(report: Report, now: Milliseconds, tx: Tx) -> None:
    """Store a report of this server itself, unless it is known or today's quota is used up."""
    since = Milliseconds(now - DAY_MILLISECONDS)
    known = reports.find_digest(tx, report.digest()) is not None
    if not known and reports.count_since(tx, None, None, since) < OWN_REPORTS_PER_DAY:
        reports.add(tx, _new_row(report, None, None), now)


def _new_row(report: Report, device: DeviceRow | None, provider: int | None) -> NewReport:
    return NewReport(
        report.digest(),
        device,
        provider,
        hub=report.hub,
        group_id=report.group_id,
        accused=report.accused,
        kind=report.kind,
        note=report.note,
        evidence=report.evidence,
    )
