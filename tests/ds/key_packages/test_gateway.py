"""The gateway: it answers sealed requests, repeats its answers, and hides what it refuses.

The file is long because it has all tests of one module, which share the helpers at its top.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from mimids.ds.key_packages.gateway import GatewayBounds
from mimids.ds.limits.rates import Rate
from mimids.errors import OhttpKey, OhttpUndecipherable
from mimids.ohttp import bhttp
from mimids.ohttp.client import Opener, encapsulate
from mimids.ohttp.config import decode_keys
from mimids.ohttp.hpke import Aead, HpkeError, PrivateKey
from mimids.store.engine.locks import Locks
from mimids.store.engine.store import Store
from mimids.store.engine.transaction import Ahead, Tx
from mimids.wire.codec import WireError
from mimids.wire.declare import decode, encode
from mimids.wire.ids import BearerToken
from mimids.wire.messages import KeyPackageBundleResponse, KeyPackageResponse, KeyPackageStatus
from tests.support.doubles import stopped_clock
from tests.support.mls_makers import NOW
from tests.support.rig import UNLIMITED, Rig, ask, bundle, packages, problem_type, running
from tests.support.store_faults import full_disk

T = TypeVar("T")

WRONG = BearerToken(bytes(32))
WINDOW = 300
# RFC 9110 section 5.6.7: a sender MUST write dates like this.
IMF_FIXDATE = re.compile(
    rb"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) \d{4} \d\d:\d\d:\d\d GMT"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


async def answer(rig: Rig, message: bytes, opener: Opener) -> bhttp.Response:
    return bhttp.decode_response(opener.open(await rig.gateway.answer(message)))


# --- what it answers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aead", Aead)
@pytest.mark.parametrize("indeterminate", [False, True])
async def test_a_key_package_comes_back_sealed(path: Path, aead: Aead, indeterminate: bool) -> None:
    async with running(path) as rig:
        device = await rig.device()
        own = packages(device.user_id, 1)
        await rig.key_packages.upload(device, own)
        content = encode(ask(await rig.token()))
        response = await answer(rig, *rig.encapsulate(content, aead=aead, indeterminate=indeterminate))
        assert response.status == 200
        assert response.field(b"content-type") == b"application/mimi-ds"
        assert decode(KeyPackageResponse, response.content).key_package == own[0]


async def test_a_bundle_is_answered_in_order(path: Path) -> None:
    async with running(path) as rig:
        token = await rig.stocked(1)
        content = bundle(ask(WRONG), ask(token), ask(token))
        response = await answer(rig, *rig.encapsulate(content, path="/key-packages?bundle"))
        results = decode(KeyPackageBundleResponse, response.content).results
        ok, refused, exhausted = KeyPackageStatus.OK, KeyPackageStatus.REFUSED, KeyPackageStatus.EXHAUSTED
        assert [result.status for result in results] == [refused, ok, exhausted]


async def test_every_answer_has_the_date_and_the_size_of_its_class(path: Path) -> None:
    async with running(path) as rig:
        token = await rig.stocked(1)
        sizes = set()
        for request in (ask(token), ask(token), ask(WRONG), ask(token, user="nobody")):
            message, opener = rig.encapsulate(encode(request))
            sealed = await rig.gateway.answer(message)
            sizes.add(len(sealed))
            date = bhttp.decode_response(opener.open(sealed)).field(b"date") or b""
            assert IMF_FIXDATE.fullmatch(date), date
            assert parsedate_to_datetime(date.decode()).timestamp() == rig.clock.now() // 1000
        sizes.add(len(await rig.gateway.answer(rig.seal(b"unreadable")[0])))
        assert len(sizes) == 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"path": "/"}, (404, "not-found")),
        ({"path": "/ds/v1/send"}, (404, "not-found")),
        ({"path": "/key-packages/"}, (404, "not-found")),
        ({"method": "GET"}, (405, "method-not-allowed")),
        ({"content": b""}, (400, "malformed")),
        ({"content": b"\0" * 4}, (400, "malformed")),
        ({"path": "/key-packages?bundle"}, (400, "malformed")),
        ({"fields": ()}, (415, "unsupported-media-type")),
        ({"fields": ((b"content-type", b"application/json"),)}, (415, "unsupported-media-type")),
        (
            {"fields": ((b"content-type", b"application/mimi-ds"),)},
            (400, "https://iana.org/assignments/http-problem-types#date"),
        ),
        (
            {"fields": ((b"content-type", b"application/mimi-ds"), (b"date", b"yesterday"))},
            (400, "https://iana.org/assignments/http-problem-types#date"),
        ),
        ({"late": WINDOW + 1}, (400, "https://iana.org/assignments/http-problem-types#date")),
        ({"late": -WINDOW - 1}, (400, "https://iana.org/assignments/http-problem-types#date")),
    ],
)
async def test_what_is_wrong_within_is_refused_sealed_and_takes_nothing(
    path: Path, change: dict[str, object], expected: tuple[int, str]
) -> None:
    async with running(path) as rig:
        content = change.pop("content", encode(ask(await rig.stocked(1))))
        response = await answer(rig, *rig.encapsulate(content, **change))  # type: ignore[arg-type]
        assert problem_type(response) == expected
        assert response.field(b"content-type") == b"application/problem+json"
        assert await rig.left() == 1


@pytest.mark.parametrize("late", [WINDOW, -WINDOW])
async def test_a_clock_may_be_off_by_the_window(path: Path, late: int) -> None:
    async with running(path) as rig:
        assert (await rig.fetch(ask(await rig.stocked(1)), late=late)).status == 200


@pytest.mark.parametrize(
    "form", [b"Sunday, 10-Jan-27 08:00:00 GMT", b"Sun Jan 10 08:00:00 2027", b"Sun, 10 Jan 2027 08:00:00 GMT"]
)
async def test_all_three_forms_of_a_date_are_read(path: Path, form: bytes) -> None:
    clock = stopped_clock(1_799_568_000)
    async with running(path, clock) as rig:
        fields = ((b"content-type", b"application/mimi-ds"), (b"date", form))
        response = await answer(rig, *rig.encapsulate(encode(ask(WRONG)), fields=fields))
        assert problem_type(response) == (403, "key-package-refused")


@pytest.mark.parametrize(
    "form", [b"Sun, 10 Jan 2027 08:00:00 +0500", b", ".join([b"Sun, 10 Jan 2027 08:00:00 GMT"] * 2)]
)
async def test_what_is_nearly_a_date_is_none(path: Path, form: bytes) -> None:
    async with running(path, stopped_clock(1_799_568_000)) as rig:
        fields = ((b"content-type", b"application/mimi-ds"), (b"date", form))
        response = await answer(rig, *rig.encapsulate(encode(ask(WRONG)), fields=fields))
        assert problem_type(response) == (400, "https://iana.org/assignments/http-problem-types#date")


async def test_refusals_of_a_token_are_the_same_bytes_whoever_is_asked_for(path: Path) -> None:
    async with running(path) as rig:
        token = await rig.stocked(1)
        refusals = [await rig.fetch(request) for request in (ask(WRONG), ask(token, "nobody"), ask(WRONG, "nobody"))]
        assert refusals[0] == refusals[1] == refusals[2]
        assert problem_type(refusals[0]) == (403, "key-package-refused")


async def test_none_left_is_not_a_refusal(path: Path) -> None:
    async with running(path) as rig:
        token = await rig.stocked(0)
        assert problem_type(await rig.fetch(ask(token))) == (404, "key-packages-exhausted")


async def test_a_tokens_rate_says_when_to_come_again(path: Path) -> None:
    async with running(path) as rig:
        await rig.stocked(2)
        token = await rig.token(rate_claims=1, rate_seconds=60)
        await rig.fetch(ask(token))
        response = await rig.fetch(ask(token))
        assert problem_type(response) == (429, "rate-limited")
        assert response.field(b"retry-after") == b"60"


async def test_a_bundle_is_bounded(path: Path) -> None:
    async with running(path, bounds=GatewayBounds(bundle_requests=2, rate=UNLIMITED)) as rig:
        content = bundle(*[ask(await rig.stocked(5))] * 3)
        response = await answer(rig, *rig.encapsulate(content, path="/key-packages?bundle"))
        assert problem_type(response) == (400, "too-many")
        assert json.loads(response.content)["limit"] == "bundle_max_requests"
        two = bundle(ask(WRONG), ask(WRONG))
        assert (await answer(rig, *rig.encapsulate(two, path="/key-packages?bundle"))).status == 200


@pytest.mark.parametrize(
    "inner",
    [
        b"",
        b"\1",
        b"\0" * 3,
        b"\0" + b"\xff" * 8,
        bytes([0, 0xC0]) + b"\xff" * 7,
        b"\2\4POST\5https\0\x0d/key-packages\xff\xff\xff\xff\xff\xff\xff\xff",
        bhttp.encode_request(bhttp.Request("POST", "https", "", "/key-packages", ((b"expect", b"100-continue"),))),
    ],
)
async def test_what_is_no_binary_http_is_refused_sealed(path: Path, inner: bytes) -> None:
    async with running(path) as rig:
        assert problem_type(await answer(rig, *rig.seal(inner))) == (400, "malformed")


# --- outside the seal -------------------------------------------------------------------------------------------


async def test_what_does_not_open_is_an_outer_error_of_the_right_kind(path: Path) -> None:
    async with running(path) as rig:
        message, _ = rig.encapsulate(encode(ask(await rig.stocked(1))))
        other, _ = rig.encapsulate(encode(ask(WRONG)))
        unknown_key = bytes([message[0] ^ 1]) + message[1:]
        other_kem = message[:1] + b"\0\x10" + message[3:]
        other_kdf = message[:3] + b"\0\2" + message[5:]
        other_aead = message[:5] + b"\0\2" + message[7:]
        for wrong in (unknown_key, other_kem, other_kdf, other_aead):
            with pytest.raises(OhttpKey):
                await rig.gateway.answer(wrong)
        for size in (0, 1, 6, 7, 38, 39, 54):
            with pytest.raises(WireError):
                await rig.gateway.answer(message[:size])
        swapped_aead = message[:5] + b"\0\3" + message[7:]
        mixed = message[:39] + other[39:]
        reordered = message[:7] + message[39:71] + message[7:39] + message[71:]
        low_order = message[:7] + bytes(32) + message[39:]
        flipped = [
            message[:at] + bytes([message[at] ^ 0x80]) + message[at + 1 :] for at in (7, 38, 39, len(message) - 1)
        ]
        for wrong in (message[:55], message[:-1], message + b"\0", swapped_aead, mixed, reordered, low_order, *flipped):
            with pytest.raises(OhttpUndecipherable):
                await rig.gateway.answer(wrong)
        assert await rig.left() == 1


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_bytes_get_an_answer_or_a_refusal(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    inner = data.draw(st.binary(max_size=80), label="inner")
    outer = data.draw(st.binary(max_size=120), label="outer")

    async def main() -> None:
        async with running(tmp_path_factory.mktemp("any") / "store.sqlite") as rig:
            assert 400 <= (await answer(rig, *rig.seal(inner))).status < 500
            with pytest.raises((OhttpKey, OhttpUndecipherable, WireError)):
                await rig.gateway.answer(outer)

    trio.run(main)


async def test_more_than_the_rate_is_refused_sealed(path: Path) -> None:
    async with running(path, bounds=GatewayBounds(rate=Rate("gateway_requests_per_second", 1, 2))) as rig:
        request = ask(await rig.stocked(3))
        await rig.fetch(request)
        await rig.fetch(request)
        assert problem_type(await rig.fetch(request)) == (429, "rate-limited")
        rig.clock.advance(1)
        assert (await rig.fetch(request)).status == 200


# --- replays ----------------------------------------------------------------------------------------------------


async def replay(rig: Rig, message: bytes, times: int) -> set[bytes]:
    answers: set[bytes] = set()

    async def once() -> None:
        answers.add(await rig.gateway.answer(message))

    async with trio.open_nursery() as relay:
        for _ in range(times):
            relay.start_soon(once)
    return answers


@pytest.mark.parametrize("late", [0, WINDOW])
async def test_a_thousand_replays_drain_one_key_package(path: Path, late: int) -> None:
    clock = stopped_clock(NOW)
    async with running(path, clock) as rig:
        message, opener = rig.encapsulate(encode(ask(await rig.stocked(10))), late=late)
        answers = await replay(rig, message, 1000)
        for _ in range(1000):
            answers.add(await rig.gateway.answer(message))
        assert len(answers) == 1
        assert await rig.left() == 9
    async with running(path, clock) as rig:  # after a restart
        answers |= await replay(rig, message, 1000)
        clock.advance(WINDOW + late)  # the last moment of the window
        answers |= await replay(rig, message, 100)
        assert len(answers) == 1
        assert rig.gateway.statistics().repeated == rig.gateway.statistics().answered > 1000
        clock.advance(0.001)
        response = await answer(rig, message, opener)
        assert problem_type(response) == (400, "https://iana.org/assignments/http-problem-types#date")
        assert await rig.left() == 9


async def test_an_answer_is_repeated_though_others_were_answered_since(path: Path) -> None:
    """A new request makes the gateway forget the answers that have expired."""
    async with running(path) as rig:
        token = await rig.stocked(5)
        message, _ = rig.encapsulate(encode(ask(token)))
        first = await rig.gateway.answer(message)
        rig.clock.advance(WINDOW - 1)
        await rig.fetch(ask(token))
        assert await rig.gateway.answer(message) == first
        assert await rig.left() == 3


async def test_a_request_that_waited_out_its_window_takes_nothing(path: Path) -> None:
    """Its answer may be forgotten by then, so the transaction itself looks at the clock."""
    async with running(path) as rig:
        token = await rig.stocked(5)
        message, opener = rig.encapsulate(encode(ask(token)))
        await rig.gateway.answer(message)
        rig.clock.advance(WINDOW)
        another, _ = rig.encapsulate(encode(ask(token)))
        here = trio.lowlevel.current_trio_token()
        entered, leave = trio.Event(), trio.Event()
        answers: list[bhttp.Response] = []

        def hold(tx: Tx) -> None:
            trio.from_thread.run_sync(entered.set, trio_token=here)
            trio.from_thread.run(leave.wait, trio_token=here)

        async def replay_in_time() -> None:
            answers.append(await answer(rig, message, opener))

        async with trio.open_nursery() as waiting:
            waiting.start_soon(rig.store.write, hold)
            await entered.wait()
            waiting.start_soon(rig.gateway.answer, another)  # makes the gateway forget what is over
            await trio.testing.wait_all_tasks_blocked()
            waiting.start_soon(replay_in_time)
            await trio.testing.wait_all_tasks_blocked()
            rig.clock.advance(1)
            leave.set()
        assert problem_type(answers[0]) == (400, "https://iana.org/assignments/http-problem-types#date")
        assert await rig.left() == 3


async def test_refusals_are_not_kept_and_copies_in_flight_share_one_answer(path: Path) -> None:
    async with running(path) as rig:
        await rig.stocked(1)
        message, _ = rig.encapsulate(encode(ask(WRONG)))
        assert len(await replay(rig, message, 50)) == 1
        assert rig.gateway.statistics().repeated == 49
        kept = await rig.store.read(lambda tx: tx.all("SELECT count(*) FROM ohttp_replays"))
        assert kept == [(0,)]


async def test_a_copy_takes_over_when_the_first_is_cancelled(path: Path) -> None:
    async with running(path) as rig:
        message, opener = rig.encapsulate(encode(ask(await rig.stocked(5))))
        answers: list[bytes] = []

        async def first(scope: trio.CancelScope) -> None:
            with scope:
                await rig.gateway.answer(message)

        async def second() -> None:
            answers.append(await rig.gateway.answer(message))

        async with trio.open_nursery() as requests:
            scope = trio.CancelScope()
            requests.start_soon(first, scope)
            await trio.testing.wait_all_tasks_blocked()
            requests.start_soon(second)
            await trio.lowlevel.checkpoint()
            scope.cancel()
        assert bhttp.decode_response(opener.open(answers[0])).status == 200
        assert await rig.left() == 4
        assert rig.gateway.statistics().in_flight == 0


async def test_the_same_encapsulated_key_with_another_request_is_refused(path: Path) -> None:
    async with running(path) as rig:
        token = await rig.stocked(5)
        (config,) = decode_keys(rig.keys.served().body)
        ephemeral = secrets.token_bytes(32)

        def request(user: str) -> bhttp.Request:
            fields = ((b"content-type", b"application/mimi-ds"), (b"date", rig.http_date()))
            return bhttp.Request("POST", "https", "", "/key-packages", fields, encode(ask(token, user)))

        first, second = (
            encapsulate(config, bhttp.encode_request(request(user)), ephemeral) for user in ("bob", "alice")
        )
        assert first.message[:39] == second.message[:39]
        got = await rig.gateway.answer(first.message)
        assert problem_type(await answer(rig, second.message, second.opener)) == (400, "ohttp-replayed")
        assert await rig.gateway.answer(first.message) == got
        assert await rig.left() == 4


async def test_when_the_replay_store_is_full_new_requests_wait_and_old_answers_stay(path: Path) -> None:
    async with running(path, bounds=GatewayBounds(replay_rows=3, rate=UNLIMITED)) as rig:
        token = await rig.stocked(10)
        sent = [rig.encapsulate(encode(ask(token))) for _ in range(3)]
        answers = [await rig.gateway.answer(message) for message, _ in sent]
        full = await rig.fetch(ask(token))
        assert problem_type(full) == (503, "busy")
        assert full.field(b"retry-after") == b"300"
        assert [await rig.gateway.answer(message) for message, _ in sent] == answers
        assert await rig.left() == 7
        rig.clock.advance(WINDOW + 1)
        assert (await rig.fetch(ask(token))).status == 200


async def test_a_write_that_is_run_again_by_the_store_hands_out_one(path: Path) -> None:
    """Another work that fails in the same commit has the writer undo and repeat ours (store/engine/store.py)."""
    async with running(path) as rig:
        messages = [rig.encapsulate(encode(ask(token))) for token in [await rig.stocked(10)] * 3]

        def fail(tx: Tx) -> None:
            raise LookupError

        async def failing() -> None:
            with pytest.raises(LookupError):
                await rig.store.write(fail)

        got = set()

        async def fetching(message: bytes, opener: Opener) -> None:
            got.add((await answer(rig, message, opener)).content)

        async with trio.open_nursery() as together:
            for message, opener in messages:
                together.start_soon(fetching, message, opener)
                together.start_soon(failing)
        assert len(got) == 3
        assert await rig.left() == 7


async def test_a_disk_that_takes_nothing_is_a_sealed_503(path: Path) -> None:
    full = False

    def fault(point: str) -> None:
        if full and point == "before_commit":
            raise full_disk()

    async with running(path, faults=fault) as rig:
        token = await rig.stocked(1)
        message, opener = rig.encapsulate(encode(ask(token)))
        full = True
        assert problem_type(await answer(rig, message, opener)) == (503, "storage-unavailable")
        full = False
        assert len({await rig.gateway.answer(message) for _ in range(2)}) == 1
        assert await rig.left() == 0


async def test_an_answer_is_for_its_own_request_only(path: Path) -> None:
    async with running(path) as rig:
        token = await rig.stocked(2)
        one, _ = rig.encapsulate(encode(ask(token)))
        _, opener = rig.encapsulate(encode(ask(token)))
        with pytest.raises(HpkeError):
            opener.open(await rig.gateway.answer(one))


async def test_keys_are_looked_for_if_a_request_names_one_that_is_unknown_and_only_then(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may have made it."""
    async with running(path) as rig:
        live: dict[int, PrivateKey] = {}
        looked = 0

        async def look() -> None:
            nonlocal looked
            looked += 1
            live.update(rig.keys.live())

        monkeypatch.setattr(rig.gateway, "_keys", lambda: live)
        monkeypatch.setattr(rig.gateway, "_look_for_keys", look)
        for _ in range(2):
            assert problem_type(await rig.fetch(ask(WRONG))) == (403, "key-package-refused")
        assert looked == 1


async def test_a_request_for_a_key_in_grace_is_answered_and_for_a_retired_one_is_not(path: Path) -> None:
    async with running(path) as rig:
        token = await rig.stocked(2)
        day = 86_400
        config = rig.keys.served().body
        rig.clock.advance(30 * day)
        await rig.keys.refresh()
        assert rig.keys.served().body != config
        assert len(rig.keys.live()) == 2
        message, opener = rig.encapsulate(encode(ask(token)), config=config)
        assert (await answer(rig, message, opener)).status == 200
        rig.clock.advance(7 * day)
        message, opener = rig.encapsulate(encode(ask(token)), config=config)
        with pytest.raises(OhttpKey):
            await rig.gateway.answer(message)


class _RunsThrice(Store):
    """A store whose writer runs each work three times, as it may after a fault; only the last answer counts."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def write(self, work: Callable[[Tx], T], *, locks: Locks | None = None, ahead: Ahead | None = None) -> T:
        return await self._store.write(lambda tx: [work(tx) for _ in range(3)][-1], locks=locks, ahead=ahead)


async def test_a_work_that_runs_again_seals_another_answer(path: Path) -> None:
    async with running(path) as rig:
        token = await rig.stocked(0)
        gateway = rig.another_gateway(_RunsThrice(rig.store))
        message, opener = rig.encapsulate(encode(ask(token)))
        answered = bhttp.decode_response(opener.open(await gateway.answer(message)))
        assert problem_type(answered) == (404, "key-packages-exhausted")
