"""Reports on hubs, followers, users and messages (semantics: terms-and-reports).

A report is first *received*: it is stored as a row. If the same reporter repeats the report, there is still one row.
Then it is *replayed*: its evidence is compared with the messages and states that are stored here. The operator may
*pass it on* without the reporter's name. At the end it is *closed*. After a restart, the job goes on from the rows.

Evidence is replayed at low priority, with a small share of a core. A replay calls no other provider, so a report cannot
make this provider call anybody. Only reports that an operator passes on are sent to other providers.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any, Final

import trio

from mimids.config import Config, Limits
from mimids.ds.early_retries import EarlyRetries
from mimids.ds.groups.contradiction import Contradiction
from mimids.ds.limits.rates import ConfiguredRate, Rates
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
from mimids.wire.ids import ProviderId

TOPIC: Final = "reports"  # wakes the job
REPLAY_SHARE: Final = 0.05  # the share of a core that replays may use
OWN_REPORTS_PER_DAY: Final = 200  # of contradictions that this server finds itself
RETRY_SECONDS: Final = 60.0  # after another provider refused a report or could not be reached
IDLE_SECONDS: Final = 600.0
MASKS_PAGE: Final = 300  # possible keys looked up in one statement
CONTRADICTION: Final = "contradiction"


class Reports:
    """Receives reports; `run` is the job that replays evidence and passes reports on."""

    def __init__(
        self,
        config: Config,
        store: Store,
        clock: Clock,
        peers: Peers,
        notifier: Notifier,
        evidence: EvidenceReplay,
        runs_jobs: Callable[[], bool] = lambda: True,
    ) -> None:
        """Make the reports; `runs_jobs` tells whether this process passes reports on."""
        self._config = config
        self._store = store
        self._clock = clock
        self._peers = peers
        self._notifier = notifier
        self._evidence = evidence
        self._runs_jobs = runs_jobs
        self._early = EarlyRetries(clock, partial(notifier.notify, TOPIC))
        self._contradictions: deque[Contradiction] = deque(maxlen=OWN_REPORTS_PER_DAY)
        self._device_searches = _searches(config.limits, "device_reports_per_day")
        self._provider_searches = _searches(config.limits, "provider_reports_per_day")

    async def receive(self, report: Report, reporter: Sender) -> int:
        """Store a report and return its reference; the same report by the same reporter has the same reference.

        Raises `QuotaExceeded`, and `Malformed` if the note contains a partition key or too much that may be one.
        A search of a note for keys takes long, so it runs without holding up other reads. A reporter may cause as many
        searches a day as the quota of reports allows. A search counts even if the report is then refused for its note.
        """
        limit = "device_reports_per_day" if isinstance(reporter, Device) else "provider_reports_per_day"
        quota: int = getattr(self._config.limits, limit)
        now, digest = self._clock.now(), report.digest(_name_of(reporter))
        if await self._store.read(lambda tx: reports.has_digest(tx, digest)):
            return reports.reference_of(digest)
        self._count_search(reporter, now)
        if await self._store.read_apart(partial(_note_has_a_key, report)):
            raise Malformed("the note contains a partition key; remove it")

        def work(tx: Tx) -> bool | MimiError:
            device = reporter.row if isinstance(reporter, Device) else None
            provider = providers.ensure_provider(tx, reporter.provider) if isinstance(reporter, Follower) else None
            if reports.has_digest(tx, digest):
                return False
            if quota and reports.count_of_day(tx, device, provider, now) >= quota:
                return QuotaExceeded(limit)
            reports.add(tx, _new_row(report, digest, device, provider), now)
            return True

        if await self._store.write_or_refuse(work):
            self._notifier.notify(TOPIC)
        return reports.reference_of(digest)

    def _count_search(self, reporter: Sender, now: Milliseconds) -> None:
        if isinstance(reporter, Device):
            searches, key = self._device_searches, str(reporter.row)
        else:
            searches, key = self._provider_searches, reporter.provider
        if not searches.left(key, now, at_most=1):
            raise QuotaExceeded(searches.rate.limit)
        searches.take(key, now)

    def heard(self, provider: ProviderId) -> None:
        """Send a provider that has called us the reports that wait for it."""
        self._early.heard(provider)

    def note_contradiction(self, contradiction: Contradiction) -> None:
        """Pass a hub's contradiction to the job, which stores a report on it."""
        self._contradictions.append(contradiction)
        self._notifier.notify(TOPIC)

    # --- the job ------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Report contradictions, pass reports on and replay evidence, until cancelled."""
        with self._notifier.listen(TOPIC) as waiter:
            task_status.started()
            while True:
                try:
                    if await self._report_contradictions() and not self._runs_jobs():
                        self._notifier.notify(TOPIC)  # only one process passes reports on
                    if not self._runs_jobs():
                        await waiter.wait_at_most(self._clock, IDLE_SECONDS)
                        continue
                    self._early.take_due()  # all reports that wait are sent
                    idle = IDLE_SECONDS if await self._pass_on() else RETRY_SECONDS
                    report = await self._store.read(reports.next_to_replay)
                    if report is not None:
                        await self._replay(report)
                        continue
                except StorageUnavailable:
                    idle = RETRY_SECONDS
                await waiter.wait_at_most(self._clock, min([idle, *self._early.seconds_left()]))

    async def _report_contradictions(self) -> bool:
        """Store a report on each contradiction that was passed to the job; return whether there were any."""
        were_any = bool(self._contradictions)
        while self._contradictions:
            found = self._contradictions[0]
            evidence = (found.message,) if found.message else ()
            note = f"what it sent contradicts what it sent before: {found.rule}"
            report = Report(found.hub, found.group_id, found.hub, CONTRADICTION, note, evidence)
            await self._store.write(partial(_store_own_report, report, self._clock.now()))
            self._contradictions.popleft()
        return were_any

    async def _replay(self, report: StoredReport) -> None:
        """Compare each piece of evidence with the store, one at a time, and sleep after each."""
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
        """Send the reports that the operator passes on; return False if a report must be sent again later."""
        after, all_sent = 0, True
        while (report := await self._store.read(partial(reports.next_to_pass_on, after=after))) is not None:
            after = report.id
            body = json.dumps(without_reporter(report).as_json()).encode()
            to = report.passed_on_to or report.hub
            self._early.begin(to)
            try:
                await self._peers.call(to, "POST", "/ds/v1/report", body, media_type="application/json")
            except MimiError as error:
                self._early.failed(to, error)
                all_sent = False
                continue
            finally:
                self._early.end(to)
            now = self._clock.now()
            await self._store.write(partial(reports.note_passed_on, report=after, now=now))
        return all_sent


def _searches(limits: Limits, limit: str) -> Rates:
    """Return the rate of searches for a quota of reports; it never refuses a reporter within the quota."""
    return Rates(ConfiguredRate.of(limits, limit, more=1))


def _note_has_a_key(report: Report, tx: Tx) -> bool:
    """Tell whether a report's note contains the key of a known partition; raise as `possible_keys` does."""
    hub = providers.provider_row(tx, report.hub) or 0
    keys = list(possible_keys(report.note))
    masks = (mask for key in keys for mask in key.masks())
    while page := list(islice(masks, MASKS_PAGE)):
        if partitions.has_any_partition(tx, hub, page):
            return True
    return False


def _store_own_report(report: Report, now: Milliseconds, tx: Tx) -> None:
    """Store a report of this server itself, unless it is known or today's quota is used up."""
    digest = report.digest("")
    known = reports.has_digest(tx, digest)
    if not known and reports.count_of_day(tx, None, None, now) < OWN_REPORTS_PER_DAY:
        reports.add(tx, _new_row(report, digest, None, None), now)


def _name_of(reporter: Sender) -> str:
    """Return the name of a reporter, by which repeats of the reporter's own reports are recognised."""
    return reporter.user_id.decode() if isinstance(reporter, Device) else reporter.provider


def _new_row(report: Report, digest: bytes, device: DeviceRow | None, provider: int | None) -> NewReport:
    return NewReport(
        digest,
        device,
        provider,
        hub=report.hub,
        group_id=report.group_id,
        accused=report.accused,
        kind=report.kind,
        note=report.note,
        evidence=report.evidence,
    )
