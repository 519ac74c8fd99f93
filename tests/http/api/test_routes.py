"""Finding the endpoint of a request: by Host, path and method."""

from __future__ import annotations

from typing import cast

import pytest

from mimids.ds.services import Services
from mimids.http.api.table import Table
from tests.support.doubles import SpyLog
from tests.support.table_rig import Handlers, Rig, rows


async def test_parts_in_braces_are_decoded_and_unknown_query_keys_ignored(rig: Rig) -> None:
    await rig.ask("GET", "/groups/a%2Fb/items/%C3%A9?bundle&partition=x&foo=1")
    (call,) = rig.handlers.calls
    assert (call.path, call.query) == ({"group": "a/b", "item": "é"}, {"bundle": ""})


@pytest.mark.parametrize(
    "target", ["/", "/nope", "/echo/", "/groups//items/1", "/groups/%ff/items/1", "//echo", "/%65cho", "http://echo"]
)
async def test_an_unknown_path_is_not_found(rig: Rig, target: str) -> None:
    answer = await rig.ask("POST", target)
    assert (answer.status, answer.problem) == (404, "not-found")


async def test_a_target_may_be_a_whole_uri(rig: Rig) -> None:
    answer = await rig.ask("GET", "https://a.example:8443/groups/g/items/i?bundle")
    assert answer.status == 200
    (call,) = rig.handlers.calls
    assert (call.path, call.query) == ({"group": "g", "item": "i"}, {"bundle": ""})


async def test_an_unknown_method_is_answered_with_those_allowed(rig: Rig) -> None:
    answer = await rig.ask("DELETE", "/receive")
    assert (answer.status, answer.problem, answer.headers["allow"]) == (405, "method-not-allowed", "OPTIONS, POST, PUT")


async def test_options_lists_the_allowed_methods(rig: Rig) -> None:
    answer = await rig.ask("OPTIONS", "/wide")
    assert (answer.status, answer.headers["allow"], answer.body) == (204, "GET, HEAD, OPTIONS", b"")


async def test_head_is_get(rig: Rig) -> None:
    answer = await rig.ask("HEAD", "/wide")  # the server leaves the body out
    assert (answer.status, answer.headers["content-length"], answer.headers["cache-control"]) == (200, "4", "no-store")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8445", 200),
        ("[::1]:1", 200),
        ("evil.example", 400),
        ("localhost.evil", 400),
        ("", 400),
    ],
)
async def test_a_listener_with_hosts_checks_the_host_header(host: str, status: int) -> None:
    rig = Rig(hosts=frozenset({"localhost", "[::1]"}))
    assert (await rig.ask("GET", "/wide", headers={"host": host})).status == status


def test_a_table_with_the_same_path_and_method_twice_is_an_error() -> None:
    doubled = rows(Handlers())[:1] * 2
    with pytest.raises(ValueError, match="twice"):
        Table(doubled, cast("Services", None), limits={"limit": 1}, admit=lambda *_: None, telemetry=SpyLog().telemetry)  # type: ignore[arg-type]
