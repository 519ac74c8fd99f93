"""Bad input of every kind to every endpoint: it is answered with the right problem type and changes nothing.

The tests are made from the table, so that a new row is tested without more work. Each answer must be one that the row
declares.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from docs.generate.http import every_endpoint, problems_of
from mimids.config import Config
from mimids.errors import Internal
from mimids.http.api.endpoints import AnyEndpoint, Listener
from mimids.http.api.operator_socket import OPERATOR_SOCKET
from mimids.http.media_types import JSON, OHTTP_REQUEST
from mimids.values import Caller, Device, Follower
from mimids.wire.codec import Codec
from tests.support.inmemory import Answered, InMemory
from tests.support.patience import patience
from tests.support.provider import Assembled, Authority, assembled
from tests.support.strategies import values

ROWS = tuple(every_endpoint())
WITH_BODY = tuple(row for row in ROWS if row.request_body is not None)
LIMIT = 20_000
# Each example starts a provider. A failure names the row and the body, so examples are not shrunk.
FEW = settings(max_examples=3, phases=(Phase.generate,), suppress_health_check=list(HealthCheck))
GARBAGE = {
    "empty": b"",
    "html": b"<html><body>hello</body></html>",
    "json": b'{"message": "hello"}',
    "ones": b"\xff" * 300,
    "zeros": bytes(300),
    "form": b"a=b&c=d",
}
OHTTP_PROBLEMS = {"malformed", "ohttp-key", "ohttp-undecipherable"}


def codec_of(row: AnyEndpoint) -> Codec[Any] | None:
    """Return the codec of a row's request; None if the body is opaque or JSON."""
    by = getattr(row.request_body and row.request_body.read, "__self__", None)
    return by if isinstance(by, Codec) else None


STRUCTURED = tuple(row for row in WITH_BODY if codec_of(row) is not None)
OPAQUE = tuple(
    row for row in WITH_BODY if codec_of(row) is None and row.request_body and row.request_body.media_type != JSON
)
OF_JSON = tuple(row for row in WITH_BODY if row.request_body and row.request_body.media_type == JSON)


def path_of(row: AnyEndpoint) -> str:
    """Return the row's path with valid values in its braces."""
    filled = {"{provider}": "a.example", "{group_id}": "Z3JvdXA", "{id}": "7", "{revision}": "1"}
    path = row.path
    for brace, value in filled.items():
        path = path.replace(brace, value)
    assert "{" not in path, "add a value for this brace to `filled`"
    return path


@attrs.frozen
class World:
    """A provider in memory, and the token of a device."""

    provider: Assembled
    token: str

    async def ask(
        self,
        row: AnyEndpoint,
        body: Any = b"",
        *,
        headers: dict[str, str] | None = None,
        names: tuple[str, ...] | None = ("b.example",),
        method: str | None = None,
        target: str | None = None,
    ) -> Answered:
        """Exchange one request as a caller that may call the row, except for what the arguments change."""
        rows = [each for each in ROWS if each.listener is row.listener]
        sent = {"authorization": f"Bearer {self.token}"} if row.caller is Device else {}
        if row.request_body is not None:
            sent["content-type"] = row.request_body.media_type
        sent |= headers or {}
        sent = {name: value for name, value in sent.items() if value}
        who = names if row.caller is Follower else None
        with patience():
            answered = await InMemory(self.provider.app(rows), who).ask(
                method or row.method, target or path_of(row), body, sent
            )
        assert answered.status != Internal.status, (row.name, self.provider.log.text[-3000:])
        if answered.status >= 400 and method is None and target is None:
            declared = {kind.problem_type().rpartition(":")[2].rpartition("#")[2] for kind in problems_of(row)}
            assert answered.problem in declared, f"{row.name} does not declare {answered.problem}"
        return answered


def configure(directory: Path) -> Config:
    config = Authority(directory).config(federation={"allow": ["b.example"]})
    limits: dict[str, Any] = dict.fromkeys({row.limit for row in ROWS}, LIMIT)
    limits |= {"device_requests_per_minute": 0}
    return attrs.evolve(config, limits=attrs.evolve(config.limits, **limits))


def in_world(test: Callable[[World], Awaitable[None]]) -> None:
    """Run a test with a provider of its own."""

    async def run() -> None:
        with tempfile.TemporaryDirectory() as directory:
            async with assembled(configure(Path(directory))) as provider:
                world = World(provider, await provider.add_device())
                for row in ROWS:  # the first call of a provider stores its terms
                    if row.caller is Follower:
                        await world.ask(row, target="/nowhere" + path_of(row))
                        await world.ask(row, method="POST", headers={"content-type": "x/y"}, target="/ds/v1/receive")
                        break
                await test(world)

    trio.run(run)


def unchanged(test: Callable[[World], Awaitable[None]]) -> Callable[[World], Awaitable[None]]:
    async def run(world: World) -> None:
        before = world.provider.dump()
        await test(world)
        assert world.provider.dump() == before

    return run


def each_row(rows: tuple[AnyEndpoint, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.name)


# --- the caller ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caller", "headers", "names", "problem"),
    [
        (Device, {"authorization": ""}, None, "unauthenticated"),
        (Device, {"authorization": "Bearer wrong"}, None, "unauthenticated"),
        (Device, {"authorization": "Basic YTpi"}, None, "unauthenticated"),
        (Follower, {}, None, "certificate-required"),
        (Follower, {}, (), "certificate-mismatch"),
        (Follower, {}, ("b.example", "c.example"), "certificate-mismatch"),
        (Follower, {"from": "mimi@c.example"}, ("b.example",), "certificate-mismatch"),
        (Follower, {}, ("c.example",), "provider-not-allowed"),
        (Follower, {}, ("a.example",), "provider-not-allowed"),
    ],
)
def test_callers_that_may_not_call_an_endpoint_are_refused(
    caller: type[Caller], headers: dict[str, str], names: tuple[str, ...] | None, problem: str
) -> None:
    rows = [row for row in ROWS if row.caller is caller and not row.websocket]
    assert rows

    @unchanged
    async def test(world: World) -> None:
        for row in rows:
            assert (await world.ask(row, b"x", headers=headers, names=names)).problem == problem, row.name

    in_world(test)


# --- the request --------------------------------------------------------------------------------------------------


def test_other_methods_and_paths_are_refused() -> None:
    @unchanged
    async def test(world: World) -> None:
        for row in ROWS:
            there = {each.method for each in ROWS if (each.listener, each.path) == (row.listener, row.path)}
            for method in {"GET", "POST", "PUT", "DELETE", "PATCH", "TRACE", "BREW"} - there:
                answered = await world.ask(row, method=method)
                assert answered.problem == "method-not-allowed", (row.name, method)
                assert there <= set(answered.headers["allow"].split(", "))
            for target in (f"{path_of(row)}/", f"{path_of(row)}/x/y", f"/x{path_of(row)}", path_of(row).upper(), "*"):
                assert (await world.ask(row, target=target)).problem == "not-found", (row.name, target)

    in_world(test)


@each_row(tuple(row for row in ROWS if "{" in row.path))
def test_any_value_in_the_path_is_answered_without_an_internal_error(row: AnyEndpoint) -> None:
    @unchanged
    async def test(world: World) -> None:
        head, _, tail = row.path.partition("{")
        for part in (
            "%00",
            "%ff",
            "..",
            "%2e%2e%2f",
            "x" * 5000,
            "-",
            "A.EXAMPLE",
            "1" * 400,
            "-1",
            "\u0663".encode().hex(),
            "a.example%0d%0aX:y",
        ):
            for last in ("7", part):
                target = head + part + "}".join(tail.split("}")[1:]).replace("{group_id}", last).replace("{id}", last)
                answered = await world.ask(row, target=target)
                assert 400 <= answered.status < 500 or row.method == "DELETE", (target, answered)

    in_world(test)


def test_a_wrong_media_type_is_refused() -> None:
    @unchanged
    async def test(world: World) -> None:
        for row in WITH_BODY:
            for media_type in ("", "text/plain", "application/octet-stream", "application/x-www-form-urlencoded", "/"):
                answered = await world.ask(row, b"x", headers={"content-type": media_type})
                assert answered.problem == "unsupported-media-type", (row.name, media_type)

    in_world(test)


def test_a_body_over_its_limit_is_refused_with_a_length_or_chunked() -> None:
    @unchanged
    async def test(world: World) -> None:
        for row in WITH_BODY:
            for body in (b"x" * (LIMIT + 1), [b"x" * 1000] * (LIMIT // 1000 + 1)):
                answered = await world.ask(row, body)
                assert (answered.status, answered.problem) == (413, "too-large"), row.name
                assert answered.json()["limit"] == row.limit

    in_world(test)


@each_row(STRUCTURED)
@given(data=st.data())
@settings(FEW)
def test_a_body_that_cannot_be_decoded_is_malformed(row: AnyEndpoint, data: st.DataObject) -> None:
    by = codec_of(row)
    assert by is not None
    body = by.encode(data.draw(values(by)))
    cut = data.draw(st.lists(st.integers(0, len(body) - 1), min_size=3, max_size=3))

    @unchanged
    async def test(world: World) -> None:
        for bad in (*(body[:size] for size in cut), body + b"\0", body + body, *GARBAGE.values()):
            try:
                by.decode(bad)
            except ValueError:
                answered = await world.ask(row, bad)
                assert answered.problem == "malformed", bad
                assert answered.json()["detail"].startswith(row.request_body.schema if row.request_body else "")
            else:
                continue

    in_world(test)


@pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE)
def test_a_sealed_request_that_cannot_be_opened_is_refused(body: bytes) -> None:
    @unchanged
    async def test(world: World) -> None:
        for row in OPAQUE:
            assert row.request_body is not None
            assert row.request_body.media_type == OHTTP_REQUEST
            assert (await world.ask(row, body)).problem in OHTTP_PROBLEMS

    in_world(test)


@each_row(OF_JSON)
@given(value=st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), st.lists))
@settings(FEW)
def test_json_of_another_shape_is_malformed(row: AnyEndpoint, value: object) -> None:
    assert row.request_body is not None
    good = json.loads(row.request_body.example)

    @unchanged
    async def test(world: World) -> None:
        wrong = [
            json.dumps(value).encode(),
            *GARBAGE.values(),
            b"[" * 10_000,
            b'{"a":' * 3000,
            b"\xef\xbb\xbf{}",
            b"{}",
        ]
        for bad in wrong:
            if (bad != GARBAGE["json"] and bad != b"{}") or row.name != "operator":
                assert (await world.ask(row, bad)).problem == "malformed", bad
        for name in good:
            for changed in ([value], "\ud800"):
                answered = await world.ask(row, json.dumps(good | {name: changed}).encode())
                assert answered.problem == "malformed", name

    in_world(test)


# --- the answer ---------------------------------------------------------------------------------------------------


@each_row(STRUCTURED)
@given(data=st.data())
@settings(FEW)
def test_any_decodable_body_gets_an_answer_that_its_endpoint_declares(row: AnyEndpoint, data: st.DataObject) -> None:
    by = codec_of(row)
    assert by is not None
    body = by.encode(data.draw(values(by)))

    async def test(world: World) -> None:
        await world.ask(row, body)
        await world.ask(row, body)

    in_world(test)


def test_every_listener_is_covered() -> None:
    assert {row.listener for row in ROWS} == set(Listener)
    assert len(STRUCTURED) + len(OPAQUE) + len(OF_JSON) == len(WITH_BODY)
    assert len(STRUCTURED) > 10
    assert OPERATOR_SOCKET
