"""All metrics: what each one counts, and what the operator should do about its values."""

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
    counts_hits: bool = False  # hits of a bound that protects others from one peer; an alert watches each of these

    def name(self, family: str) -> str:
        """Return the name as Prometheus shows it."""
        return f"{family}_total" if self.kind is MetricKind.COUNTER else family


def _counter(what: str, meaning: str, *labels: str) -> Metric:
    return Metric(MetricKind.COUNTER, what, meaning, labels)


def _hits(what: str, meaning: str, *labels: str) -> Metric:
    return Metric(MetricKind.COUNTER, what, meaning, labels, counts_hits=True)


def _gauge(what: str, meaning: str, *labels: str) -> Metric:
    return Metric(MetricKind.GAUGE, what, meaning, labels)


# Bounds that protect others from one peer, as `mimids_bound_hits_total` names them. No name identifies a peer.
BOUNDS: Final[tuple[str, ...]] = (
    "departures",
    "device-frames",
    "device-streams",
    "empty-partitions",
    "gateway-address-rate",
    "gateway-rate",
    "new-providers",
    "partly-taken-push",
    "presented-keys",
    "provider-answers",
    "pushed-octets",
    "recovered-groups",
    "repeated-pushes",
    "replay-share",
    "slow-call-cancelled",
    "waiting-requests",
    "welcomes",
    "welcomes-again",
)

# Metrics that a single request to the gateway or the relay would change. The server publishes their values once in each
# period of `telemetry.COUNT_SECONDS`. Somebody who reads them every second then cannot tell one request from another.
HELD_METRICS: Final[tuple[str, ...]] = (
    "mimids_bound_hits",
    "mimids_buffers_octets",
    "mimids_buffers_refused",
    "mimids_listener_open",
    "mimids_listener_refused",
    "mimids_listener_evicted",
    "mimids_listener_timed_out",
    "mimids_listener_failed",
    "mimids_gateway_answered",
    "mimids_gateway_repeated",
    "mimids_peers_answered",
    "mimids_peers_crowded_out",
    "mimids_peers_refused",
    "mimids_peers_unavailable",
    "mimids_store_writes",
    "mimids_store_commits",
    "mimids_stock_devices_empty",
    "mimids_disk_database_bytes",
    "mimids_disk_free_bytes",
)

METRICS: Final[Mapping[str, Metric]] = {
    "mimids_requests": _counter(
        "requests answered; code is ok, closed (the caller had disconnected), or the code of a problem",
        "internal is an error of this server: read the log; other codes growing: faulty callers, or too low a limit",
        "route",
        "code",
    ),
    "mimids_bound_hits": _hits(
        "times that a peer reached a bound that protects the others",
        "growing: an attack, a faulty client, or a bound that is too low; the label names the bound",
        "bound",
    ),
    "mimids_store_writable": _gauge(
        "1: the last write succeeded; 0: it failed",
        "0: writes are answered 503; free space on the disk: the server then recovers by itself",
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
        "free space on the disk of data_dir", "less than a week of writes: free space or move to a larger disk"
    ),
    "mimids_disk_database_bytes": _gauge(
        "size of the database and its write-ahead log",
        "growing without end: shorten [retention], or find the devices and providers that are away",
    ),
    "mimids_certificate_expires_seconds": _gauge(
        "when the served certificate expires, in seconds since the epoch", "less than two weeks ahead: renew it"
    ),
    "mimids_stock_devices": _gauge("devices of our users", "compare the next metric with this total"),
    "mimids_stock_devices_empty": _gauge(
        "devices without a KeyPackage to hand out", "growing: clients stay away, or somebody drains the stock"
    ),
    "mimids_reports_open": _gauge("open reports", "read them: mimids report list"),
    "mimids_buffers_octets": _gauge(
        "octets of bodies, answers and frames that are kept for peers",
        "near [listen] buffered_bytes for long: many slow peers; raise it, or find out who they are",
    ),
    "mimids_buffers_refused": _hits(
        "bodies, answers and frames for which there was no room", "growing: an attack, or buffered_bytes is too low"
    ),
    "mimids_listener_open": _gauge(
        "open connections", "near [listen] connections: raise that limit, or find out who holds them", "listener"
    ),
    "mimids_listener_waiting": _gauge(
        "waiting requests (`Prefer: wait`)", "near half of [listen] connections: clients should use streams", "listener"
    ),
    "mimids_listener_refused": _hits(
        "connections refused because the listener was full",
        "growing: raise [listen] connections, or find who holds them",
        "listener",
    ),
    "mimids_listener_evicted": _hits(
        "connections without a request, closed to make room for others",
        "growing: raise [listen] connections, or find who holds them",
        "listener",
    ),
    "mimids_listener_timed_out": _hits(
        "connections whose peer was silent for too long", "growing: slow networks, or an attack by slowness", "listener"
    ),
    "mimids_listener_flooded": _hits(
        "WebSockets closed because of too many control frames and small fragments",
        "growing: a faulty client, or an attack by one of your devices",
        "listener",
    ),
    "mimids_listener_delayed": _hits(
        "requests and handshakes that waited because their caller had many at the same moment",
        "growing fast: one caller sends more than the server can answer; the others are served first",
        "listener",
    ),
    "mimids_listener_failed": _counter(
        "connections ended by an error of this server",
        "above 0: report it, with the traceback from the log",
        "listener",
    ),
    "mimids_streams_open": _gauge("open streams of devices", "0 although users are online: streams do not get through"),
    "mimids_gateway_answered": _counter(
        "OHTTP requests answered or refused",
        "the rate of KeyPackage fetches; unusually high: somebody may drain the stock",
    ),
    "mimids_gateway_repeated": _counter(
        "OHTTP requests that came a second time", "growing: a relay retries, or somebody replays requests"
    ),
    "mimids_peers_answered": _counter(
        "calls to other providers that were answered", "compare the next two metrics with this total"
    ),
    "mimids_peers_refused": _counter(
        "calls refused by another provider", "growing: allow-lists, terms or certificates do not match"
    ),
    "mimids_peers_unavailable": _counter(
        "calls without an answer", "growing for all providers at the same time: our own network fails"
    ),
    "mimids_peers_crowded_out": _hits(
        "calls that were not made, because too many were in flight",
        "growing: slow providers hold calls; see mimids check",
    ),
    "mimids_delivery_busy": _gauge(
        "followers that are being served now", "near the number of all followers for long: many answer slowly"
    ),
    "mimids_delivery_messages": _counter("messages pushed to followers", "traffic to other providers"),
    "mimids_delivery_failures": _counter(
        "pushes that failed", "growing: the peer metrics below show at which provider"
    ),
    "mimids_welcomes_delivered": _counter(
        "Welcomes delivered, one for each provider", "compare the next metric with this total"
    ),
    "mimids_welcomes_refused": _counter(
        "KeyPackages for which a provider refused a Welcome",
        "growing: clients name wrong providers or old KeyPackages; the log says which provider refused, and why",
    ),
    "mimids_peer_behind_messages": _gauge(
        "undelivered messages of our groups in at most 256 partitions, the first that changed since the provider had"
        " all messages",
        "growing: look at that provider",
        "peer",
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
        "above 0: a hub is faulty or malicious; see mimids report list",
    ),
    "mimids_following_refused_pushes": _hits(
        "pushes refused because their hub had used up provider_bytes_per_day",
        "above 0: a hub sends more than it should, or the limit is too low",
    ),
    "mimids_recovery_waiting": _gauge(
        "answers that held groups wait for since a restore",
        "not falling: end the wait for a group with mimids group release",
    ),
    "mimids_departures_searched": _counter(
        "groups searched for leaves of removed devices", "not growing after a removal: the job does not run"
    ),
    "mimids_departures_proposed": _counter(
        "Remove proposals of this provider that a hub sequenced", "compare the next two metrics with this total"
    ),
    "mimids_departures_refused": _counter(
        "Remove proposals that a hub refused", "growing: mimids device removals says in which groups, and why"
    ),
    "mimids_departures_failures": _counter(
        "failed attempts to propose a removal, which are repeated later",
        "growing: a hub cannot be reached; see mimids check",
    ),
    "mimids_wake_ups_subscriptions": _gauge(
        "devices that are woken with Web Push", "compare the next metrics with this total"
    ),
    "mimids_wake_ups_waiting": _gauge(
        "sleeping devices that have something new, but for which no push was sent yet",
        "above 0 for long: a push service fails, or pushes are slower than messages",
    ),
    "mimids_wake_ups_failing": _gauge(
        "push services called recently that did not accept the last push",
        "growing: our own network fails, or the services refuse us; a single service may have shut down",
    ),
    "mimids_wake_ups_pushed": _counter("pushes that a push service accepted", "traffic to push services"),
    "mimids_wake_ups_failed": _counter(
        "pushes that a push service did not accept; they are tried again", "growing fast: see mimids_wake_ups_failing"
    ),
    "mimids_wake_ups_refused": _counter(
        "pushes that a push service refused for good",
        "growing: the key or the clock of this server is wrong, or clients subscribe with another key",
    ),
    "mimids_wake_ups_gone": _counter(
        "subscriptions deleted because the push service no longer has them", "normal: people remove an app"
    ),
    "mimids_processes_runs_jobs": _gauge(
        "1 if this process runs the jobs that run in one process, such as delivery",
        "if the sum over all processes is not 1 for a minute, see `mimids processes`",
    ),
    "mimids_processes_lag_milliseconds": _gauge(
        "how long a message between the processes takes to reach this process, measured with its own last sign of life",
        "over 1000 for a minute: this process, its machine or the database is overloaded",
    ),
    "mimids_processes_alive": _gauge(
        "processes of the provider that this process knows to be alive, itself included",
        "lower than the number that you started: see `mimids processes`",
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
