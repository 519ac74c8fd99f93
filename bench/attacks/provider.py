"""What another provider can send, with its certificate."""

from __future__ import annotations

from collections.abc import Iterator

from bench.attacks import bodies, json_bodies
from bench.attacks.groups import Groups
from bench.attacks.inputs import Input, asks, posts
from bench.raw_client import request
from mimids.wire.declare import encode
from mimids.wire.ids import Counter, PartitionKey, ProviderId
from mimids.wire.messages import ReceiveRequest


def inputs(hub: str, groups: Groups) -> Iterator[Input]:
    def at(endpoint: str, path: str, found: bodies.Bodies, media_type: str = "application/mimi-ds") -> Iterator[Input]:
        bounded_by = {"report": "provider_reports_per_day", "join": "provider_joins_per_hour"}.get(endpoint, "")
        return posts("provider", hub, endpoint, f"/ds/v1/{path}", found, media_type=media_type, bounded_by=bounded_by)

    group = groups.known
    for name, make in bodies.sends(group).items():
        yield from at("send", "send", {name: lambda number, make=make: encode(make(number))})
    yield from at("send-batch", "send-batch", bodies.batches(group, groups.branched))
    yield from at("receive", "receive", bodies.receives(groups))
    yield from at("join", "join", bodies.joins(groups))
    yield from at("propose", "propose", bodies.proposes(groups))
    yield from at("group-info", "group-info", bodies.group_infos(groups.read))
    yield from at("welcome-status", "welcome-status", bodies.welcome_statuses(groups))
    yield from at("welcome-init", "welcome/init", bodies.welcome_inits())
    yield from at("welcome", "welcome", bodies.welcomes(), "message/mls")
    yield from at("push", "push", bodies.pushes())
    for endpoint, found in bodies.recoveries(group).items():
        yield from at(endpoint, endpoint.replace("-", "/"), found)
    yield from at("report", "report", json_bodies.reports(ProviderId(hub)), "application/json")
    arrangement = {
        "get": lambda number: request("GET", "/ds/v1/arrangement", hub),
        "accept": lambda number: request("PUT", "/ds/v1/arrangement/1", hub),
    }
    yield from asks("provider", "arrangement", arrangement)


def receiving(hub: str, key: PartitionKey) -> bytes:
    """Return the request that makes the provider a follower of a group."""
    body = encode(ReceiveRequest(key, Counter(0)))
    return request("POST", "/ds/v1/receive", hub, body, media_type="application/mimi-ds")
