"""The log and the metrics of one provider. Nothing is global to the process, so two providers in it stay separate.

No line contains a user, a token, a partition key or a body. Each request gets a line, except those to the gateway and
the relay: they are only counted, a minute at a time, because their times in the logs of two providers, compared, would
reveal who fetched what. Formatting a line is kept short, as there is one for each request (docs/decisions/0007).
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
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO

import attrs

from mimids.metrics import METRICS, MetricKind
from mimids.wire.ids import ProviderId

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

Level = Literal["debug", "info", "warning", "error", "critical"]
Format = Literal["text", "json"]

COUNT_SECONDS: Final = 60  # for which unlinkable requests are counted together
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_LEVELS: Final[tuple[Level, ...]] = ("debug", "info", "warning", "error", "critical")
_PLAIN: Final = re.compile(r"[\w.:@/+-]+")
_JSON: Final = json.JSONEncoder(separators=(",", ":"), default=repr)


class Log:
    """Writes one line for each event to a stream, without fields that are None.

    Errors of the stream are ignored: a log that cannot be written does not stop the server.
    """

    def __init__(self, provider: ProviderId, *, format: Format, level: Level, to: TextIO) -> None:
        self._provider = provider
        self._line = _json_line if format == "json" else _text_line
        self._enabled = frozenset(_LEVELS[_LEVELS.index(level) :])
        self._to = to

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
        now = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "timestamp": f"{now[:-6]}Z",
            "level": level,
            "event": event,
            "provider": self._provider,
        }
        line.update((name, value) for name, value in fields.items() if value is not None)
        if error is not None:
            line["exception"] = "".join(traceback.format_exception(error))
        with suppress(OSError):
            self._to.write(self._line(line))
            self._to.flush()


@attrs.frozen
class Reading:
    """Values of metrics: each field is the metric `mimids_PREFIX_FIELD`, if `metrics.METRICS` has that one."""

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
        self._counted_since = time.monotonic()
        self._watched: list[tuple[str, Callable[[], attrs.AttrsInstance], Mapping[str, str]]] = []

    def request(
        self, route: str, code: str, *, id_: str, peer: ProviderId | None, received: int, sent: int, milliseconds: float
    ) -> None:
        """Count and log a request that was answered; `code` is `ok` or the code of the problem."""
        self._requests[route, code] += 1
        self._log_counts_when_due()
        self.log.info(
            "request",
            route=route,
            code=code,
            peer=peer,
            received=received,
            sent=sent,
            ms=round(milliseconds, 1),
            id=id_,
        )

    def request_unlinkable(self, route: str, code: str) -> None:
        """Count a request that must not have a log line of its own."""
        self._requests[route, code] += 1
        self._unlinkable[route, code] += 1
        self._log_counts_when_due()

    def log_counts(self) -> None:
        """Write the counts since the last call; call it at shutdown, too."""
        counts, self._unlinkable = self._unlinkable, Counter()
        self._counted_since = time.monotonic()
        for (route, code), count in sorted(counts.items()):
            self.log.info("requests", route=route, code=code, count=count)

    def _log_counts_when_due(self) -> None:
        if self._unlinkable and time.monotonic() - self._counted_since >= COUNT_SECONDS:
            self.log_counts()

    def requests(self) -> Counter[tuple[str, str]]:
        """Return the numbers of requests answered since the start, by route and code."""
        return Counter(self._requests)

    def watch(self, prefix: str, statistics: Callable[[], attrs.AttrsInstance], **labels: str) -> None:
        """Add a source of metrics: `statistics()` is called for each scrape, and shown as a `Reading`."""
        self._watched.append((prefix, statistics, labels))

    def metrics(self, readings: Sequence[Reading] = ()) -> bytes:
        """Return all metrics as Prometheus text, including `readings`."""
        from prometheus_client import (
            CollectorRegistry,
        )  # takes a tenth of a second to import, which no start has to wait for
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

        samples: dict[str, list[tuple[tuple[str, ...], float]]] = {"mimids_requests": [*self._requests.items()]}
        watched = (Reading(prefix, statistics(), labels) for prefix, statistics, labels in self._watched)
        for reading in (*watched, *readings):
            for field in attrs.fields(type(reading.numbers)):
                values = samples.setdefault(f"mimids_{reading.prefix}_{field.name}", [])
                values.append((tuple(reading.labels.values()), getattr(reading.numbers, field.name)))
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


def _json_line(line: dict[str, object]) -> str:
    return _JSON.encode(line) + "\n"


def _text_line(line: dict[str, object]) -> str:
    timestamp, level, event, exception = (line.pop(name, "") for name in ("timestamp", "level", "event", "exception"))
    fields = "".join(f" {name}={_text(value)}" for name, value in line.items())
    return f"{timestamp} {level:<8} {event}{fields}\n{exception}"


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
