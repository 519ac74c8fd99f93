"""All metrics: what each one counts, and what an operator does about it. Each one leads to an action."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

import attrs


class MetricKind(Enum):
    """The type of a metric in Prometheus."""

    COUNTER = "counter"  # since the start; its name ends in _total
    GAUGE = "gauge"


@attrs.frozen
class Metric:
    """A metric: what it counts (`what`), and what its values mean for the operator (`meaning`)."""

    kind: MetricKind
    what: str
    meaning: str
    labels: tuple[str, ...] = ()

    def name(self, family: str) -> str:
        """Return the name as Prometheus shows it."""
        return f"{family}_total" if self.kind is MetricKind.COUNTER else family


def _counter(what: str, meaning: str, *labels: str) -> Metric:
    return Metric(MetricKind.COUNTER, what, meaning, labels)


def _gauge(what: str, meaning: str, *labels: str) -> Metric:
    return Metric(MetricKind.GAUGE, what, meaning, labels)


METRICS: Final[Mapping[str, Metric]] = {
    "mimids_requests": _counter(
        "requests answered; code is ok, closed (the caller had disconnected), or the code of a problem",
        "internal is an error of this server: read the log; other codes growing: faulty callers, or too low a limit",
        "route",
        "code",
    ),
    "mimids_store_writable": _gauge(
        "1: the last write succeeded; 0: the disk failed it",
        "0: writes are answered 503; free space on the disk, then it recovers by itself",
    ),
    "mimids_store_storage_failures": _counter(
        "writes answered storage-unavailable", "growing: the disk is full or failing"
    ),
    "mimids_store_waiting_writes": _gauge(
        "writes waiting for the next commit", "high for long: the disk is too slow for the load"
    ),
    "mimids_store_waiting_reads": _gauge(
        "reads waiting for a reader", "high for long: some reads take long, or the machine is too small"
    ),
    "mimids_store_writes": _counter(
        "writes committed", "writes per commit show how well writes share commits, and how loaded the machine is"
    ),
    "mimids_store_commits": _counter("commits to disk", "see mimids_store_writes_total"),
    "mimids_disk_free_bytes": _gauge(
        "free space on the disk of data_dir", "less than a week uses: free space or move to a larger disk"
    ),
    "mimids_disk_database_bytes": _gauge(
        "size of the database and its write-ahead log",
        "growing without end: shorten [retention], or find the devices and providers that are away",
    ),
    "mimids_certificate_expires_seconds": _gauge(
        "when the served certificate expires, in seconds since the epoch", "less than two weeks ahead: renew it"
    ),
    "mimids_stock_devices": _gauge("devices of our users", "the total for the next metric"),
    "mimids_stock_devices_empty": _gauge(
        "devices without a KeyPackage to hand out", "growing: clients stay away, or somebody drains the stock"
    ),
    "mimids_reports_open": _gauge("open reports", "read them: mimids report list"),
    "mimids_listener_open": _gauge(
        "open connections", "near [listen] connections: raise that limit, or find out who holds them", "listener"
    ),
    "mimids_listener_refused": _counter(
        "connections refused because the listener was full", "growing: as above", "listener"
    ),
    "mimids_listener_failed": _counter(
        "connections ended by an error of this server", "any: report it, with the traceback from the log", "listener"
    ),
    "mimids_streams_open": _gauge(
        "devices with an open stream", "0 although users are online: streams do not get through"
    ),
    "mimids_gateway_answered": _counter(
        "OHTTP requests answered or refused",
        "the rate of KeyPackage fetches; unusually high: somebody may drain the stock",
    ),
    "mimids_gateway_repeated": _counter(
        "OHTTP requests that came a second time", "growing: a relay retries, or somebody replays requests"
    ),
    "mimids_peers_answered": _counter(
        "calls to other providers that were answered", "the total for the next two metrics"
    ),
    "mimids_peers_refused": _counter(
        "calls refused by another provider", "growing: allow-lists, terms or certificates do not match"
    ),
    "mimids_peers_unavailable": _counter(
        "calls without an answer", "growing for all providers at once: our own network fails"
    ),
    "mimids_delivery_busy": _gauge("followers being served now", "at [delivery] workers for long: raise that setting"),
    "mimids_delivery_messages": _counter("messages pushed to followers", "traffic to other providers"),
    "mimids_delivery_failures": _counter(
        "pushes that failed", "growing: the peer metrics below show at which provider"
    ),
    "mimids_peer_behind_messages": _gauge(
        "messages of our groups not delivered to the provider yet", "growing: look at that provider", "peer"
    ),
    "mimids_peer_behind_seconds": _gauge(
        "age of the oldest undelivered message", "minutes: its users see nothing new; contact its operator", "peer"
    ),
    "mimids_peer_failures": _gauge(
        "consecutive failures", "above 0 for long: run mimids check to find the reason", "peer"
    ),
    "mimids_peer_circuit_open": _gauge(
        "1: the provider keeps failing, and is tried only now and then",
        "1 for long: it may have shut down permanently",
        "peer",
    ),
    "mimids_peer_stuck_partitions": _gauge(
        "partitions whose pushes the provider refuses permanently", "retries do not help: mimids provider show", "peer"
    ),
    "mimids_following_messages": _counter("messages received from hubs", "traffic from other providers"),
    "mimids_following_gaps": _counter(
        "gaps in pushed messages, each fetched afterwards", "growing: a hub, or the network, loses pushes"
    ),
    "mimids_following_contradictions": _counter(
        "pushes that contradict earlier messages of the hub",
        "any: a hub is faulty or malicious; see mimids report list",
    ),
    "mimids_recovery_waiting": _gauge(
        "answers that held groups wait for since a restore",
        "constant: end the wait for a group with mimids group release",
    ),
    "mimids_sweeper_sweeps": _counter("sweeps that deleted expired data", "not growing: expired data is not deleted"),
}


def catalogue() -> str:
    """Return all metrics as a table in Markdown."""
    rows = ["| metric | counts | what to do |", "| --- | --- | --- |"]
    for family, metric in METRICS.items():
        labels = f" by {', '.join(f'`{label}`' for label in metric.labels)}" if metric.labels else ""
        rows.append(f"| `{metric.name(family)}`{labels} | {metric.what} | {metric.meaning} |")
    return "\n".join(rows) + "\n"
