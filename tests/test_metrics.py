"""Metrics: a provider shows exactly those of the catalogue, and the Prometheus and Grafana examples use only them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mimids.metrics import BOUNDS, METRICS
from mimids.testing import PretendGroup, Session, federation

EXAMPLES = Path(__file__).parent.parent / "examples" / "prometheus"
NAMES = {metric.name(family) for family, metric in METRICS.items()}


def test_a_provider_shows_every_metric_and_no_other(mimids_session: Session) -> None:
    with federation("a.example", "b.example", session=mimids_session, links=False) as [a, b]:
        group = PretendGroup.at(a.name)
        a.add_device("alice").ask(lambda device: device.create_group(group.creation()))
        b.add_device("bob").ask(lambda device: device.send(group.hub, group.message(b"hello")))
        shown = a.metrics()
    assert {name.partition("{")[0] for name in shown} == NAMES
    assert shown["mimids_stock_devices"] == shown["mimids_stock_devices_empty"] == 1
    assert shown['mimids_listener_open{listener="operator"}'] == 1
    assert shown["mimids_disk_database_bytes"] > 100_000 < shown["mimids_disk_free_bytes"]
    assert shown["mimids_certificate_expires_seconds"] > 1_700_000_000


@pytest.mark.parametrize("name", ["alerts.yml", "grafana-dashboard.json"])
def test_the_examples_use_only_existing_metrics(name: str) -> None:
    watched = set(re.findall(r"mimids_\w+", (EXAMPLES / name).read_text()))
    assert watched
    assert watched <= NAMES


def test_every_bound_that_peers_reach_has_an_alert() -> None:
    alerts = re.findall(r"expr: (.*)", (EXAMPLES / "alerts.yml").read_text())
    for family, metric in METRICS.items():
        if metric.counts_hits:
            expressions = [each for each in alerts if metric.name(family) in each]
            assert expressions, f"no alert watches {family}"
            assert not any(f"{metric.name(family)}{{" in each for each in expressions), (
                "the alert is for some bounds only"
            )


# Tests that drive a peer to a bound ask for its hits by name, with `bound_hits`.
ASKED = re.compile(r'bound_hits\(\s*[\w.]+,\s*"([\w-]+)"\s*\)')


def test_every_bound_is_reached_in_some_test() -> None:
    tests = Path(__file__).parent
    asked = {name for file in tests.rglob("test_*.py") for name in ASKED.findall(file.read_text())}
    assert asked == set(BOUNDS)


def test_the_dashboard_shows_and_describes_all_metrics() -> None:
    dashboard = json.loads((EXAMPLES / "grafana-dashboard.json").read_text())
    assert all(panel["description"] and panel["title"] for panel in dashboard["panels"])
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    text = json.dumps(dashboard["panels"])
    unseen = {name for name in NAMES if name not in text}
    # For these, another panel or an alert says enough.
    assert unseen == {
        "mimids_store_storage_failures_total",
        "mimids_listener_failed_total",
        "mimids_peers_crowded_out_total",
        "mimids_peer_failures",
        "mimids_peer_circuit_open",
        "mimids_following_contradictions_total",
        "mimids_following_refused_pushes_total",
        "mimids_departures_searched_total",
        "mimids_departures_failures_total",
    }
