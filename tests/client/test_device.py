"""A device at a real provider, under trio and under asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from mimids.client import Problem, Unreachable, open_device
from mimids.mls.signing_key import cipher_suites_of
from mimids.wire.ids import CipherSuite, GroupId, PartitionKey, ProviderId
from tests.support.cli_runs import provider, run, serving

A = ProviderId("a.example")


async def talk(url: str, token: str, trust: Path) -> None:
    async with open_device(url, token, trust=trust) as device:
        assert (await device.me())["user_id"] == "mimi://a.example/u/alice"
        (key,) = await device.provider_keys()
        assert (key.scheme, key.cipher_suites, key.identity) == (
            "Ed25519",
            cipher_suites_of("Ed25519"),
            b"mimi://a.example",
        )
        assert await device.external_senders(CipherSuite(1), bare=True) == key.external_sender
        with pytest.raises(LookupError):
            await device.external_senders(CipherSuite(7))
        issued = await device.issue_token("unique", label="for bob", uses=3, rate=(2, 3600))
        assert len(issued.bearer_token.reveal()) == 32
        await device.revoke_token(issued.id)
        assert (await device.upload([], replace=True)).accepted == 0
        await device.drop_stock()
        assert await device.welcomes() == ()
        for call, code in (
            (device.receive(A, PartitionKey(bytes(16))), "unknown-partition"),
            (device.group_info(A, GroupId(b"nothing")), "unknown-group"),
            (device.revoke_token(99), "not-found"),
            (device.issue_token("shared", rate=(0, 3600)), "malformed"),
        ):
            with pytest.raises(Problem) as refused:
                await call
            assert refused.value.code == code
    async with open_device(url, "wrong", trust=trust) as stranger:
        with pytest.raises(Problem) as refused:
            await stranger.me()
        assert (refused.value.status, refused.value.code) == (401, "unauthenticated")
    async with open_device("https://127.0.0.1:1", token, trust=trust) as lost:
        with pytest.raises(Unreachable):
            await lost.me()


@pytest.mark.slow
def test_a_device_works_alike_under_trio_and_asyncio(tmp_path: Path) -> None:
    provider(tmp_path)
    assert run("user", "add", "alice", cwd=tmp_path).code == 0
    token = run("device", "add", "alice", "1", "--json", cwd=tmp_path).json["token"]
    runs: list[Callable[[Callable[[], Awaitable[None]]], object]] = [trio.run, lambda talk: asyncio.run(talk())]  # type: ignore[arg-type]
    with serving("--config", "mimids.toml", cwd=tmp_path) as (_, said):
        url = next(line.split()[-1] for line in said if line.strip().startswith("client"))
        for run_in in runs:
            run_in(lambda: talk(url, token, tmp_path / "ca.pem"))
