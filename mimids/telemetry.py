"""Log lines and counters of one provider. Nothing here is global to the process: two providers in it keep apart.

No line names a user, a token, a partition key or a body; a gateway's and a relay's line has no size, no time taken
and no request id either, or two providers' logs could be put side by side.
"""

from __future__ import annotations

import json
import logging
import secrets
import sys
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, Final, Literal, TextIO

import attrs
import structlog
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mimids.wire.ids import ProviderId

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["text", "json"]

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}


@attrs.frozen
class Telemetry:
    """Where one provider says what it does; `registry` takes the metrics of whoever has any."""

    log: structlog.typing.FilteringBoundLogger
    logger: logging.Logger  # writes to `log`; for what knows the standard library's only
    registry: CollectorRegistry
    requests: Counter

    def request(
        self, route: str, code: str, *, id_: str, peer: ProviderId | None, received: int, sent: int, milliseconds: float
    ) -> None:
        """Note a request that was answered; `code` is `ok` or the problem's."""
        self.requests.labels(route, code).inc()
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

    def request_coarsely(self, route: str, code: str) -> None:
        """Note a request whose log line must not be linkable to any other line."""
        self.requests.labels(route, code).inc()
        self.log.info("request", route=route, code=code)

    def watch(self, prefix: str, statistics: Callable[[], attrs.AttrsInstance]) -> None:
        """Show the numbers of a `statistics()` record as `mimids_PREFIX_FIELD`, read whenever metrics are."""
        self.registry.register(_Watched(prefix, statistics))

    def metrics(self) -> bytes:
        """Return all metrics as Prometheus text."""
        return generate_latest(self.registry)


def new_telemetry(
    provider: ProviderId, *, format: Format = "text", level: Level = "info", to: TextIO | None = None
) -> Telemetry:
    """Return a provider's log, on standard error unless told otherwise, and its empty registry."""
    lines: structlog.typing.Processor = _json if format == "json" else structlog.dev.ConsoleRenderer(colors=False)
    log = structlog.wrap_logger(
        structlog.PrintLogger(to or sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _without_none,
            lines,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        context_class=dict,
        provider=provider,
    )
    registry = CollectorRegistry(auto_describe=False)
    requests = Counter("mimids_requests", "Requests answered", ["route", "code"], registry=registry)
    return Telemetry(log, _standard_logger(log, _LEVELS[level]), registry, requests)


def new_request_id() -> str:
    """Return what ties an answer to its log line: 64 random bits, in hex."""
    return secrets.token_hex(8)


class _Watched(Collector):
    def __init__(self, prefix: str, statistics: Callable[[], attrs.AttrsInstance]) -> None:
        self._prefix = prefix
        self._statistics = statistics

    def collect(self) -> Iterator[Metric]:
        record = self._statistics()
        for field in attrs.fields(type(record)):
            name = f"mimids_{self._prefix}_{field.name}"
            yield GaugeMetricFamily(name, f"{self._prefix}: {field.name}", value=getattr(record, field.name))


class _Forward(logging.Handler):
    def __init__(self, log: structlog.typing.FilteringBoundLogger) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.log(record.levelno, record.getMessage(), exc_info=record.exc_info)


def _standard_logger(log: structlog.typing.FilteringBoundLogger, level: int) -> logging.Logger:
    logger = logging.Logger("mimids", level)  # made, not got: it is in no tree of loggers
    logger.addHandler(_Forward(log))
    return logger


def _without_none(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {name: value for name, value in event.items() if value is not None}


def _json(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
    first = {name: event.pop(name) for name in ("timestamp", "level", "event")}
    return json.dumps(first | dict(event), default=repr, separators=(",", ":"))
