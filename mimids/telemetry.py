"""The log and the metrics of one provider. Nothing is global to the process, so two providers in it stay separate.

No line contains a user, a token, a partition key or a body. Each request gets a line, except requests to the gateway
and the relay. Requests to these two, the unlinkable requests, are only counted. Their counts, and all metrics that they
change, are published every five minutes: somebody who could compare the times of requests at two providers would learn
who fetched what.
Formatting is fast, because each request needs a line (docs/decisions/0007).
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO

import attrs

from mimids.metrics import BOUNDS, HELD_METRICS, METRICS, MetricKind
from mimids.printable import printable
from mimids.wire.ids import ProviderId

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

Level = Literal["debug", "info", "warning", "error", "critical"]
Format = Literal["text", "json"]

COUNT_SECONDS: Final = 300  # the period for which unlinkable requests are counted together
# failures of unlinkable requests that are kept until the counts are logged; further ones are dropped
FAILURES_KEPT: Final = 20
EVENTS_KEPT: Final = 100  # events in unlinkable requests that are kept until the counts are logged
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
Sample = tuple[tuple[str, ...], float]  # the values of the labels, and of the metric
_LEVELS: Final[tuple[Level, ...]] = ("debug", "info", "warning", "error", "critical")
_PLAIN: Final = re.compile(r"[\w.:@/+-]+")
_JSON: Final = json.JSONEncoder(separators=(",", ":"), default=repr)


class Log:
    """Writes one line for each event to a stream, without fields that are None.

    Errors of the stream are ignored: a log that cannot be written does not stop the server.
    """

    def __init__(self, provider: ProviderId, *, format: Format, level: Level, to: TextIO) -> None:
        self._provider = provider
        self._to = to
        self.configure(format=format, level=level)

    def configure(self, *, format: Format, level: Level) -> None:
        """Write lines in this format from now on, and only lines of this level or above."""
        self._line = _json_line if format == "json" else _text_line
        self._request_line = _json_request_line if format == "json" else _text_request_line
        self._enabled = frozenset(_LEVELS[_LEVELS.index(level) :])

    def debug(self, event: str, **fields: object) -> None:
        """Write a line for debugging."""
        self.write("debug", event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Write a line about normal operation."""
        self.write("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Write a line that the operator may have to look at."""
        self.write("warning", event, fields)

    def error(self, event: str, exc_info: BaseException | None = None, **fields: object) -> None:
        """Write a line about an error of this server, with the traceback of `exc_info`."""
        self.write("error", event, fields, exc_info)

    def critical(self, event: str, exc_info: BaseException | None = None, **fields: object) -> None:
        """Write a line about an error that ends the process."""
        self.write("critical", event, fields, exc_info)

    def write(self, level: Level, event: str, fields: dict[str, Any], error: BaseException | None = None) -> None:
        """Write a line, if `level` is enabled."""
        if level not in self._enabled:
            return
        line: dict[str, object] = {
            "timestamp": _timestamp(time.time()),
            "level": level,
            "event": event,
            "provider": self._provider,
        }
        line.update((name, value) for name, value in fields.items() if value is not None)
        if error is not None:
            line["exception"] = "".join(traceback.format_exception(error))
        self._put(self._line(line))

    def request(
        self, route: str, code: str, peer: ProviderId | None, received: int, sent: int, milliseconds: float, id_: str
    ) -> None:
        """Write the line of a request as `info` would, but format it in one step, because each request has such a line.

        No value here may need to be escaped.
        """
        if "info" in self._enabled:
            ms, timestamp = round(milliseconds, 1), _timestamp(time.time())
            self._put(self._request_line(timestamp, self._provider, route, code, peer, received, sent, ms, id_))

    def _put(self, line: str) -> None:
        with suppress(OSError):
            self._to.write(line)
            self._to.flush()  # each line at once: a file takes a microsecond, and no crash loses a line


@attrs.frozen
class Reading:
    """Values of metrics: each field is the metric `mimids_PREFIX_FIELD`, if `metrics.METRICS` has that metric."""

    prefix: str
    numbers: attrs.AttrsInstance
    labels: Mapping[str, str] = attrs.field(factory=dict)


class Telemetry:
    """The log of a provider, its counts of requests, and the statistics that its metrics show."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.logger = _standard_logger(log)  # for code that needs a logger of the standard library
        self._requests: Counter[tuple[str, str]] = Counter()
        self._unlinkable: Counter[tuple[str, str]] = Counter()
        self._unlinkable_failures: Counter[tuple[str, str]] = Counter()  # by route and traceback
        self._unlinkable_events: Counter[tuple[str, tuple[tuple[str, object], ...]]] = Counter()  # events and fields
        self._bound_hits: Counter[str] = Counter(dict.fromkeys(BOUNDS, 0))
        self._unpublished: Counter[tuple[str, str]] = Counter()  # of the unlinkable requests, since `_held` was made
        self._held: dict[str, list[Sample]] = {}  # by metric
        self._held_since = -1  # number of the period, counted by the monotonic clock
        self._watched: list[tuple[str, Callable[[], attrs.AttrsInstance], Mapping[str, str]]] = []

    def request(
        self,
        route: str,
        code: str,
        *,
        id_: str,
        peer: ProviderId | None,
        received: int,
        sent: int,
        milliseconds: float,
        log: bool = True,
    ) -> None:
        """Count and log a request that was answered; `code` is `ok` or the code of the problem.

        Without `log` the request is only counted: a page that refreshes itself would fill the log.
        """
        self._requests[route, code] += 1
        if log:
            self.log.request(route, code, peer, received, sent, milliseconds, id_)

    def request_unlinkable(self, route: str, code: str) -> None:
        """Count a request that must not have a log line of its own."""
        self._unpublished[route, code] += 1
        self._unlinkable[route, code] += 1

    def failure_unlinkable(self, route: str, error: BaseException) -> None:
        """Record an error of this server in a request that must not have a log line of its own.

        The next counts in the log contain the type of the error and the place where it was raised. They do not contain
        its message, which may name the target of the request.
        """
        frames = "".join(traceback.format_tb(error.__traceback__)) + type(error).__name__
        if (route, frames) in self._unlinkable_failures or len(self._unlinkable_failures) < FAILURES_KEPT:
            self._unlinkable_failures[route, frames] += 1

    def event_unlinkable(self, event: str, **fields: object) -> None:
        """Count an event in a request that must not have a log line of its own; it is logged with the next counts."""
        key = event, tuple(fields.items())
        if key in self._unlinkable_events or len(self._unlinkable_events) < EVENTS_KEPT:
            self._unlinkable_events[key] += 1

    def log_counts(self) -> None:
        """Write the counts since the last call.

        Call this every COUNT_SECONDS and at shutdown, but never because of a request: the line would show the time of
        the request.
        """
        counts, self._unlinkable = self._unlinkable, Counter()
        failures, self._unlinkable_failures = self._unlinkable_failures, Counter()
        for (route, code), count in sorted(counts.items()):
            self.log.info("requests", route=route, code=code, count=count)
        events, self._unlinkable_events = self._unlinkable_events, Counter()
        for (event, fields), count in events.items():
            self.log.warning(event, count=count, **dict(fields))
        for (route, frames), count in failures.items():
            self.log.error("a handler failed", route=route, count=count, exception=frames)

    def bound_hit(self, bound: str) -> None:
        """Count that a peer reached a bound; `bound` is one of `metrics.BOUNDS`."""
        self._bound_hits[bound] += 1

    def requests(self) -> Counter[tuple[str, str]]:
        """Return the numbers of requests answered since the start, by route and code.

        Unlinkable requests are added once in each period of COUNT_SECONDS.
        """
        self._publish_when_due()
        return Counter(self._requests)

    def _publish_when_due(self) -> None:
        """Add the counts of unlinkable requests to the counts that are shown, if a new period has begun."""
        period = int(time.monotonic() // COUNT_SECONDS)
        if period == self._held_since:
            return
        self._held_since = period
        self._requests += self._unpublished
        self._unpublished.clear()
        self._held.clear()

    def watch(self, prefix: str, statistics: Callable[[], attrs.AttrsInstance], **labels: str) -> None:
        """Add a source of metrics: `statistics()` is called for each scrape, and shown as a `Reading`."""
        self._watched.append((prefix, statistics, labels))

    def metrics(self, readings: Sequence[Reading] = ()) -> bytes:
        """Return all metrics as Prometheus text, including `readings`."""
        from prometheus_client import (
            CollectorRegistry,
        )  # imported here, because the import takes a tenth of a second and a start should not wait for it
        from prometheus_client.exposition import generate_latest
        from prometheus_client.registry import Collector

        class Now(Collector):
            def collect(_) -> Iterator[Metric]:
                return self._collect(readings)

        registry = CollectorRegistry()
        registry.register(Now())
        return generate_latest(registry)

    def _collect(self, readings: Sequence[Reading]) -> Iterator[Metric]:
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        self._publish_when_due()
        samples: dict[str, list[Sample]] = {
            "mimids_requests": [*self._requests.items()],
            "mimids_bound_hits": [((bound,), hits) for bound, hits in self._bound_hits.items()],
        }
        watched = (Reading(prefix, statistics(), labels) for prefix, statistics, labels in self._watched)
        for reading in (*watched, *readings):
            for field in attrs.fields(type(reading.numbers)):
                values = samples.setdefault(f"mimids_{reading.prefix}_{field.name}", [])
                values.append((tuple(reading.labels.values()), getattr(reading.numbers, field.name)))
        for family in HELD_METRICS:
            samples[family] = self._held.setdefault(family, samples.get(family, []))
        for family, metric in METRICS.items():
            kind = CounterMetricFamily if metric.kind is MetricKind.COUNTER else GaugeMetricFamily
            shown = kind(family, metric.what, labels=metric.labels)
            for labels, value in samples.get(family, ()):
                shown.add_metric(labels, value)
            yield shown


def new_telemetry(
    provider: ProviderId, *, format: Format = "text", level: Level = "info", to: TextIO | None = None
) -> Telemetry:
    """Return the telemetry of a provider; it logs to standard error, or to `to`."""
    return Telemetry(Log(provider, format=format, level=level, to=to or sys.stderr))


def new_request_id() -> str:
    """Return an identifier for an answer and its log line: 64 random bits, in hex."""
    return secrets.token_hex(8)


def _timestamp(now: float) -> str:
    return f"{_second(int(now))}.{int(now * 1000) % 1000:03}Z"


@lru_cache(maxsize=1)
def _second(now: int) -> str:
    return datetime.fromtimestamp(now, UTC).isoformat()[:-6]


def _json_line(line: dict[str, object]) -> str:
    return _JSON.encode(line) + "\n"


def _text_line(line: dict[str, object]) -> str:
    timestamp, level, event, exception = (line.pop(name, "") for name in ("timestamp", "level", "event", "exception"))
    fields = "".join(f" {name}={_text(value)}" for name, value in line.items())
    indented = "".join(f"  {printable(text)}\n" for text in str(exception).splitlines())  # cannot forge a line
    return f"{timestamp} {level:<8} {event}{fields}\n{indented}"


def _json_request_line(
    timestamp: str,
    provider: str,
    route: str,
    code: str,
    peer: str | None,
    received: int,
    sent: int,
    ms: float,
    id_: str,
) -> str:
    named = "" if peer is None else f'"peer":"{peer}",'
    return (
        f'{{"timestamp":"{timestamp}","level":"info","event":"request","provider":"{provider}","route":"{route}",'
        f'"code":"{code}",{named}"received":{received},"sent":{sent},"ms":{ms},"id":"{id_}"}}\n'
    )


def _text_request_line(
    timestamp: str,
    provider: str,
    route: str,
    code: str,
    peer: str | None,
    received: int,
    sent: int,
    ms: float,
    id_: str,
) -> str:
    named = "" if peer is None else f" peer={peer}"
    return (
        f"{timestamp} info     request provider={provider} route={route} code={code}{named}"
        f" received={received} sent={sent} ms={ms} id={id_}\n"
    )


def _text(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else _JSON.encode(text)  # escaped, so that no value can start a new line


class _Forward(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        level = _LEVELS[min(max(record.levelno // 10 - 1, 0), len(_LEVELS) - 1)]
        self._log.write(level, record.getMessage(), {}, record.exc_info[1] if record.exc_info else None)


def _standard_logger(log: Log) -> logging.Logger:
    logger = logging.Logger("mimids")  # not from getLogger: it has no parent loggers, and no other code finds it
    logger.addHandler(_Forward(log))
    return logger
