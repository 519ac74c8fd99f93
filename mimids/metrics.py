"""Every metric there is: what it counts, and what an operator decides by it. One that decides nothing is not here."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

import attrs


class MetricKind(Enum):
    """How Prometheus reads it."""

    COUNTER = "counter"  # since the start; its name ends in _total
    GAUGE = "gauge"


@attrs.frozen
class Metric:
    """What a metric counts, and what to do by it."""

    kind: MetricKind
    what: str
    decides: str
    labels: tuple[str, ...] = ()

    def name(self, family: str) -> str:
        """Return the name of its series."""
        return f"{family}_total" if self.kind is MetricKind.COUNTER else family


def _counter(what: str, decides: str, *labels: str) -> Metric:
    return Metric(MetricKind.COUNTER, what, decides, labels)


def _gauge(what: str, decides: str, *labels: str) -> Metric:
    return Metric(MetricKind.GAUGE, what, decides, labels)


METRICS: Final[Mapping[str, Metric]] = {
    "mimids_requests": _counter(
        "requests answered; code is ok, closed (the caller was gone), or a problem's",
        "internal is a fault of ours: read the log; another that grows: callers get it wrong, or a limit is low",
        "route",
        "code",
    ),
    "mimids_store_writable": _gauge(
        "1: the last write met no failing disk", "0: writes get 503; make room, it goes on by itself"
    ),
    "mimids_store_storage_failures": _counter(
        "writes answered storage-unavailable", "it grows: the disk is full, or failing"
    ),
    "mimids_store_waiting_writes": _gauge(
        "writes that wait for the next commit", "it stays high: the disk is too slow for what is sent"
    ),
    "mimids_store_waiting_reads": _gauge(
        "reads that wait for a reader", "it stays high: something reads for long, or the machine is too small"
    ),
    "mimids_store_writes": _counter(
        "writes committed", "for each commit: how well writes share their commits; how near the machine is to its end"
    ),
    "mimids_store_commits": _counter("commits to disk", "see writes"),
    "mimids_disk_free_bytes": _gauge("room on the disk of data_dir", "below what a week takes: make room"),
    "mimids_disk_database_bytes": _gauge(
        "the database with its write-ahead log", "it grows without end: shorter [retention], or somebody is away"
    ),
    "mimids_certificate_expires_seconds": _gauge(
        "when the pair that is served ends, in seconds since the epoch", "two weeks ahead: renew it"
    ),
    "mimids_stock_devices": _gauge("devices of our users", "how many the next line is of"),
    "mimids_stock_devices_empty": _gauge(
        "devices without a KeyPackage to hand out", "it grows: clients do not come back, or somebody drains stock"
    ),
    "mimids_reports_open": _gauge("reports that nobody has closed", "read them: mimids report list"),
    "mimids_listener_open": _gauge(
        "open connections", "near [listen] connections: raise it, or look who holds them", "listener"
    ),
    "mimids_listener_refused": _counter("connections refused for want of room", "it grows: the same", "listener"),
    "mimids_listener_failed": _counter(
        "connections that a fault of this server ended", "any: the log has the traceback; report it", "listener"
    ),
    "mimids_streams_open": _gauge("devices with a live stream", "0 with users about: streams do not get through"),
    "mimids_gateway_answered": _counter(
        "sealed requests answered, refusals too", "the rate of KeyPackage fetches: is somebody draining stock?"
    ),
    "mimids_gateway_repeated": _counter(
        "of these, answered a second time", "it grows: a relay repeats, or somebody replays"
    ),
    "mimids_peers_answered": _counter("calls to other providers answered", "what the next two are of"),
    "mimids_peers_refused": _counter(
        "calls that another provider refused", "it grows: allow-lists, terms or certificates do not fit"
    ),
    "mimids_peers_unavailable": _counter("calls that got no answer", "for all providers at once: it is our network"),
    "mimids_delivery_busy": _gauge("followers that are being served", "it stays at [delivery] workers: raise that"),
    "mimids_delivery_messages": _counter("messages pushed to followers", "traffic to others"),
    "mimids_delivery_failures": _counter("pushes that failed", "see the peers below for whose"),
    "mimids_peer_behind_messages": _gauge(
        "messages of our groups that it has not got", "it grows: look at that provider", "peer"
    ),
    "mimids_peer_behind_seconds": _gauge(
        "age of the oldest of them", "minutes: its users see nothing new; tell its operator", "peer"
    ),
    "mimids_peer_failures": _gauge("failures in a row", "above 0 for long: mimids check says what is wrong", "peer"),
    "mimids_peer_circuit_open": _gauge(
        "1: it fails again and again, and is tried only now and then", "is that provider gone for good?", "peer"
    ),
    "mimids_peer_stuck_partitions": _gauge(
        "partitions that it refuses for good", "no repetition mends it: mimids provider show", "peer"
    ),
    "mimids_following_messages": _counter("messages taken from hubs", "traffic from others"),
    "mimids_following_gaps": _counter(
        "gaps in what a hub pushed, each asked for again", "it grows: that hub, or the way to it, loses pushes"
    ),
    "mimids_following_contradictions": _counter(
        "pushes that contradict what the hub said before", "any: a hub is wrong, or worse; mimids report list"
    ),
    "mimids_recovery_waiting": _gauge(
        "answers that held groups wait for since a restore", "it stays: mimids group release ends the wait for one"
    ),
    "mimids_sweeper_sweeps": _counter("rounds of dropping what is over", "it stands still: nothing is dropped"),
}


def catalogue() -> str:
    """Return all metrics as a table."""
    rows = ["| metric | is | so |", "| --- | --- | --- |"]
    for family, metric in METRICS.items():
        labels = f" by {', '.join(f'`{label}`' for label in metric.labels)}" if metric.labels else ""
        rows.append(f"| `{metric.name(family)}`{labels} | {metric.what} | {metric.decides} |")
    return "\n".join(rows) + "\n"
