"""Log lines and counters of one provider. Nothing here is global to the process: two providers in it keep apart.

No line names a user, a token, a partition key or a body. A gateway's and a relay's requests have no line of their own,
but are counted together for a minute: two providers' logs, put side by side, would tell by the times who fetched what.
Otherwise a line is written for every request, so it is made in a few steps (docs/decisions/0007).
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

COUNT_SECONDS: Final = 60
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_LEVELS: Final[tuple[Level, ...]] = ("debug", "info", "warning", "error", "critical")
_PLAIN: Final = re.compile(r"[\w.:@/+-]+")
_JSON: Final = json.JSONEncoder(separators=(",", ":"), default=repr)


class Log:
    """One line for each event, with its fields, to one stream; a field that is None is left out.

    A stream that takes nothing any more does not end the server.
    """

    def __init__(self, provider: ProviderId, *, format: Format, level: Level, to: TextIO) -> None:
        self._provider = provider
        self._line = _json_line if format == "json" else _text_line
        self._enabled = frozenset(_LEVELS[_LEVELS.index(level) :])
        self._to = to

    def debug(self, event: str, **fields: object) -> None:
        """Tell what helps to find out."""
        self.write("debug", event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Tell what went as it should."""
        self.write("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Tell what somebody may have to look at."""
        self.write("warning", event, fields)

    def error(self, event: str, exc_info: BaseException | None = None, **fields: object) -> None:
        """Tell what went wrong, with the traceback of `exc_info`."""
        self.write("error", event, fields, exc_info)

    def critical(self, event: str, exc_info: BaseException | None = None, **fields: object) -> None:
        """Tell what ends the process."""
        self.write("critical", event, fields, exc_info)

    def write(self, level: Level, event: str, fields: dict[str, Any], error: BaseException | None = None) -> None:
        """Write a line, if `level` is asked for."""
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
    """Numbers at one moment: each field is `mimids_PREFIX_FIELD`, where `metrics.METRICS` has that."""

    prefix: str
    numbers: attrs.AttrsInstance
    labels: Mapping[str, str] = attrs.field(factory=dict)


class Telemetry:
    """Where one provider says what it does."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.logger = _standard_logger(log)  # for what knows the standard library's only
        self._requests: Counter[tuple[str, str]] = Counter()
        self._unlinkable: Counter[tuple[str, str]] = Counter()
        self._counted_since = time.monotonic()
        self._watched: list[tuple[str, Callable[[], attrs.AttrsInstance], Mapping[str, str]]] = []

    def request(
        self, route: str, code: str, *, id_: str, peer: ProviderId | None, received: int, sent: int, milliseconds: float
    ) -> None:
        """Note a request that was answered; `code` is `ok` or the problem's."""
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
        """Count a request that nothing in the log may be linked to."""
        self._requests[route, code] += 1
        self._unlinkable[route, code] += 1
        self._log_counts_when_due()

    def log_counts(self) -> None:
        """Write what was counted since the last time; to be called at the end."""
        counts, self._unlinkable = self._unlinkable, Counter()
        self._counted_since = time.monotonic()
        for (route, code), count in sorted(counts.items()):
            self.log.info("requests", route=route, code=code, count=count)

    def _log_counts_when_due(self) -> None:
        if self._unlinkable and time.monotonic() - self._counted_since >= COUNT_SECONDS:
            self.log_counts()

    def requests(self) -> Counter[tuple[str, str]]:
        """Return how many requests were answered since the start, by route and code."""
        return Counter(self._requests)

    def watch(self, prefix: str, statistics: Callable[[], attrs.AttrsInstance], **labels: str) -> None:
        """Show the numbers of a `statistics()` record, read whenever metrics are, as `Reading` does."""
        self._watched.append((prefix, statistics, labels))

    def metrics(self, readings: Sequence[Reading] = ()) -> bytes:
        """Return all metrics as Prometheus text, those of `readings` among them."""
        from prometheus_client import CollectorRegistry  # a tenth of a second that no start has to wait for
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
    """Return a provider's log, on standard error unless told otherwise, and its counters."""
    return Telemetry(Log(provider, format=format, level=level, to=to or sys.stderr))


def new_request_id() -> str:
    """Return what ties an answer to its log line: 64 random bits, in hex."""
    return secrets.token_hex(8)


def _json_line(line: dict[str, object]) -> str:
    return _JSON.encode(line) + "\n"


def _text_line(line: dict[str, object]) -> str:
    timestamp, level, event, exception = (line.pop(name, "") for name in ("timestamp", "level", "event", "exception"))
    fields = "".join(f" {name}={_text(value)}" for name, value in line.items())
    return f"{timestamp} {level:<8} {event}{fields}\n{exception}"


def _text(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else _JSON.encode(text)  # no value can begin a line of its own


class _Forward(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        level = _LEVELS[min(max(record.levelno // 10 - 1, 0), len(_LEVELS) - 1)]
        self._log.write(level, record.getMessage(), {}, record.exc_info[1] if record.exc_info else None)


def _standard_logger(log: Log) -> logging.Logger:
    logger = logging.Logger("mimids")  # made, not got: it is in no tree of loggers
    logger.addHandler(_Forward(log))
    return logger
