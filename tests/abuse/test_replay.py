"""The store of answers to replays: what one holder of a token can fill, and what it costs."""

from __future__ import annotations

import secrets
from copy import copy
from pathlib import Path

from mimids.ds.devices.accounts import remove_device
from mimids.ds.key_packages.gateway import GatewayBounds
from mimids.ds.key_packages.replays import ReplayBounds
from mimids.ohttp import bhttp
from mimids.ohttp.encapsulation import response_nonce_size
from mimids.ohttp.hpke import Aead
from mimids.wire.declare import decode, encode
from mimids.wire.messages import KeyPackageBundleResponse, KeyPackageStatus
from tests.support.doubles import bound_hits
from tests.support.mls_makers import DAY
from tests.support.rig import PROVIDER, UNLIMITED, Rig, ask, bundle, packages, problem_type, running

ROWS = 1000  # of the store; a token may have 100 of them


async def stored_octets(rig: Rig) -> int:
    tables = ("ohttp_replays", "ohttp_replay_packages")
    sizes = ("coalesce(length(response), 0) + coalesce(length(items), 0) + 100", "length(body)")
    total = 0
    for table, size in zip(tables, sizes, strict=True):
        sql = f"SELECT coalesce(sum({size}), 0) FROM {table}"  # noqa: S608
        total += int((await rig.store.read(lambda tx, sql=sql: tx.all(sql)))[0][0])  # type: ignore[misc]
    return total


async def rows(rig: Rig) -> int:
    return int((await rig.store.read(lambda tx: tx.all("SELECT count(*) FROM ohttp_replays")))[0][0])


async def test_repeats_of_a_last_resort_are_the_same_octets_and_cost_few(tmp_path: Path) -> None:
    async with running(tmp_path / "store.sqlite") as rig:
        device = await rig.device()
        (last,) = packages(device.user_id, 1, last_resort=True)
        await rig.key_packages.upload(device, [last])
        token = await rig.token()
        sent = [rig.encapsulate(encode(ask(token))) for _ in range(50)]
        answers = [await rig.gateway.answer(message) for message, _ in sent]
        assert len(set(answers)) == 50
        assert await stored_octets(rig) < len(last) + 50 * 200
        # The last resort that was handed out is gone, time has passed, and the provider was started again.
        await rig.key_packages.upload(device, packages(device.user_id, 1, last_resort=True), replace=True)
        rig.clock.advance(60)
        again = rig.another_gateway(rig.store)
        assert [await again.answer(message) for message, _ in sent] == answers
        assert bhttp.decode_response(sent[0][1].open(answers[0])).status == 200


async def test_a_bundle_with_a_last_resort_is_repeated_octet_by_octet(tmp_path: Path) -> None:
    async with running(tmp_path / "store.sqlite") as rig:
        token = await rig.stocked(1, last_resort=True)
        wrong = type(token)(secrets.token_bytes(32))
        content = bundle(ask(wrong), ask(token))
        for _ in range(2):  # the ordinary one, then the last resort
            message, opener = rig.encapsulate(content, path="/key-packages?bundle")
            first = await rig.gateway.answer(message)
            assert await rig.gateway.answer(message) == first
            results = decode(KeyPackageBundleResponse, bhttp.decode_response(opener.open(first)).content).results
            assert [each.status for each in results] == [KeyPackageStatus.REFUSED, KeyPackageStatus.OK]


async def test_a_repeat_does_not_have_the_last_resort_of_a_device_that_was_removed_meanwhile(tmp_path: Path) -> None:
    """Nor is the changed answer sealed with the nonce of the first: whoever has both could tell what is in them."""
    async with running(tmp_path / "store.sqlite") as rig:
        token = await rig.stocked(0, last_resort=True)
        wrong = type(token)(secrets.token_bytes(32))
        message, opener = rig.encapsulate(bundle(ask(token), ask(wrong)), path="/key-packages?bundle")
        single, opener_of_single = rig.encapsulate(encode(ask(token)))

        def statuses(answer: bytes) -> list[int]:
            content = bhttp.decode_response(copy(opener).open(answer)).content
            return [each.status for each in decode(KeyPackageBundleResponse, content).results]

        first, of_single = await rig.gateway.answer(message), await rig.gateway.answer(single)
        assert statuses(first) == [KeyPackageStatus.OK, KeyPackageStatus.REFUSED]
        await rig.store.write(lambda tx: remove_device(tx, PROVIDER, "bob", "phone"))
        assert await rig.store.read(lambda tx: tx.all("SELECT id FROM ohttp_replay_packages")) == []
        again, single_again = await rig.gateway.answer(message), await rig.gateway.answer(single)
        assert statuses(again) == [KeyPackageStatus.EXHAUSTED, KeyPackageStatus.REFUSED]
        refused = bhttp.decode_response(opener_of_single.open(single_again))
        assert problem_type(refused) == (404, "key-packages-exhausted")
        nonce = slice(response_nonce_size(Aead.AES_128_GCM))
        assert first[nonce] != again[nonce]
        assert of_single[nonce] != single_again[nonce]


async def test_one_token_fills_its_share_and_others_go_on(tmp_path: Path) -> None:
    bounds = GatewayBounds(replay_rows=ROWS, rate=UNLIMITED)
    share = ReplayBounds(ROWS, 600).token_rows
    async with running(tmp_path / "store.sqlite", bounds=bounds) as rig:
        greedy = await rig.stocked(0, last_resort=True, user="mallory")
        other = await rig.stocked(0, last_resort=True, user="bob")
        refusals = set()
        for _ in range(share + 20):
            response = await rig.fetch(ask(greedy, "mallory"))
            if response.status != 200:
                refusals.add(problem_type(response))
        assert refusals == {(429, "rate-limited")}
        assert bound_hits(rig.log.telemetry, "replay-share") == 20
        assert await rows(rig) == share
        assert (await rig.fetch(ask(other, "bob"))).status == 200


async def test_many_tokens_of_one_user_fill_the_users_share_only(tmp_path: Path) -> None:
    bounds = GatewayBounds(replay_rows=ROWS, rate=UNLIMITED)
    share = ReplayBounds(ROWS, 600).user_rows
    async with running(tmp_path / "store.sqlite", bounds=bounds) as rig:
        await rig.stocked(0, last_resort=True, user="mallory")
        other = await rig.stocked(0, last_resort=True, user="bob")
        for _ in range(3):
            token = await rig.token("mallory")
            for _ in range(share // 2):
                await rig.fetch(ask(token, "mallory"))
        assert await rows(rig) == share
        assert (await rig.fetch(ask(other, "bob"))).status == 200


async def test_a_share_comes_back_as_answers_expire(tmp_path: Path) -> None:
    async with running(tmp_path / "store.sqlite", bounds=GatewayBounds(replay_rows=ROWS, rate=UNLIMITED)) as rig:
        token = await rig.stocked(0, last_resort=True)
        while (await rig.fetch(ask(token))).status == 200:
            pass
        rig.clock.advance(601)
        assert (await rig.fetch(ask(token))).status == 200
        assert await rows(rig) == 1


async def test_answers_from_a_time_to_come_do_not_fill_the_store(tmp_path: Path) -> None:
    """They are the first rows of the store, and the clock was set back since."""
    async with running(tmp_path / "store.sqlite", bounds=GatewayBounds(replay_rows=ROWS, rate=UNLIMITED)) as rig:
        token = await rig.stocked(0, last_resort=True)
        rig.clock.jump(DAY)
        assert (await rig.fetch(ask(token))).status == 200
        rig.clock.jump(-DAY)
        for _ in range(3):
            rig.clock.advance(700)
            assert (await rig.fetch(ask(token))).status == 200
        assert await rows(rig) == 1
        assert int((await rig.store.read(lambda tx: tx.all("SELECT count(*) FROM ohttp_replay_packages")))[0][0]) == 1


def test_shares_are_a_part_of_the_store_and_of_a_small_store_more() -> None:
    default, small, tiny = (ReplayBounds(rows, 600) for rows in (100_000, ROWS, 50))
    assert (default.user_rows, default.token_rows) == (2000, 1000)
    assert (small.user_rows, small.token_rows) == (100, 100)
    assert (tiny.user_rows, tiny.token_rows) == (50, 50)
    assert (default.octets, default.user_octets) == (512_000_000, 16_000_000)
    assert (small.octets, small.user_octets) == (5_120_000, 1 << 20)
    assert (tiny.octets, tiny.user_octets) == (256_000, 256_000)
