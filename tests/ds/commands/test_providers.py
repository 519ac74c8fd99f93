"""Other providers are allowed and removed while the server runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from mimids.app import ServingProvider
from mimids.cli.check.command import use_operator_rules
from mimids.cli.check.peers import peers
from mimids.config import Config
from mimids.ds.commands import command_named
from mimids.ds.commands.performing import perform
from mimids.errors import Malformed, PeerUnavailable, ProviderNotAllowed
from mimids.wire.ids import ProviderId
from tests.support.cli_runs import invoke
from tests.support.cli_runs import provider as a_provider
from tests.support.provider import Authority, running

B = ProviderId("b.example")


async def operate(bound: ServingProvider, name: str, **arguments: Any) -> Any:
    command = command_named(name)
    return await perform(bound.provider.services, command, command.given(arguments), "shell 7")


async def call_in(authority: Authority, bound: ServingProvider) -> bytes:
    """Return the status line of the answer to a request of b.example."""
    host, _, port = bound.addresses["public"].rpartition(":")
    stream = trio.SSLStream(
        await trio.open_tcp_stream(host, int(port)),
        authority.client_context("b.example"),
        server_hostname="a.example",
        https_compatible=True,
    )
    async with stream:
        head = b"GET /ds/v1/arrangement HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n"
        await stream.send_all(head)
        answer = b""
        while piece := await stream.receive_some():
            answer += piece
    return answer


async def call_out(bound: ServingProvider) -> type[Exception]:
    try:
        await bound.provider.peers.call(B, "POST", "/ds/v1/push")
    except (ProviderNotAllowed, PeerUnavailable) as error:
        return type(error)
    raise AssertionError("nobody listens there")


def configured(authority: Authority, *allow: str) -> Config:
    nowhere: dict[str, Any] = {B: {"url": "https://127.0.0.1:1"}}
    return authority.config("a.example", federation={"allow": list(allow)}, providers=nowhere)


async def test_a_provider_is_allowed_and_removed_without_a_restart_and_a_restart_keeps_that(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    config = configured(authority)
    async with running(config) as bound:
        assert b"provider-not-allowed" in await call_in(authority, bound)
        assert await call_out(bound) is ProviderNotAllowed
        answer = await operate(bound, "provider allow", provider="b.example")
        assert (answer["allowed"], answer["decided_by"]) == (True, "operator")
        assert b"provider-not-allowed" not in await call_in(authority, bound)
        assert await call_out(bound) is PeerUnavailable
    async with running(configured(authority)) as bound:
        assert await call_out(bound) is PeerUnavailable
        answer = await operate(bound, "provider remove", provider="b.example")
        assert (answer["allowed"], answer["decided_by"]) == (False, "configuration")
        assert b"provider-not-allowed" in await call_in(authority, bound)
        assert await call_out(bound) is ProviderNotAllowed


@pytest.mark.parametrize("federation", [{"allow": ["b.example"]}, {"mode": "open"}])
async def test_a_removal_goes_before_the_configuration(federation: dict[str, Any], tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    config = authority.config("a.example", federation=federation, providers={B: {"url": "https://127.0.0.1:1"}})
    heard: list[ProviderId] = []
    async with running(config) as bound:
        assert await call_out(bound) is PeerUnavailable
        bound.provider.services.callers.listen(heard.append)
        answer = await operate(bound, "provider remove", provider="b.example")
        assert (answer["allowed"], answer["decided_by"]) == (False, "operator")
        assert await call_out(bound) is ProviderNotAllowed
        (listed,) = (await operate(bound, "provider list"))["providers"]
        assert (listed["allowed"], listed["decided_by"]) == (False, "operator")
        answer = await operate(bound, "provider allow", provider="b.example")
        assert (answer["allowed"], answer["decided_by"]) == (True, "configuration")
        assert heard == [B]
        assert await call_out(bound) is PeerUnavailable


async def test_what_waits_for_a_provider_is_tried_at_once_when_it_is_allowed(tmp_path: Path) -> None:
    heard: list[ProviderId] = []
    async with running(configured(Authority(tmp_path))) as bound:
        bound.provider.services.callers.listen(heard.append)
        for _ in range(2):
            await operate(bound, "provider allow", provider="b.example")
        assert heard == [B]


@pytest.mark.parametrize("provider", ["a.example", "B.example", "https://b.example", ""])
async def test_only_another_domain_can_be_allowed(provider: str, tmp_path: Path) -> None:
    async with running(configured(Authority(tmp_path))) as bound:
        for command in ("provider allow", "provider remove"):
            with pytest.raises(Malformed, match="provider"):
                await operate(bound, command, provider=provider)


def checked(config: Config) -> list[str]:
    use_operator_rules(config)
    return [finding.check for finding in peers(config)]


@pytest.mark.sqlite_file("backups and restores are of files")
def test_checks_and_a_restore_know_what_the_operator_decided(tmp_path: Path) -> None:
    config = a_provider(tmp_path)
    assert checked(config) == ["peers"]
    assert invoke(config, "provider", "allow", "b.example").exit_code == 0
    assert checked(config) == ["peer b.example"]
    assert invoke(config, "backup", tmp_path / "copy").exit_code == 0
    assert invoke(config, "provider", "allow", "c.example").exit_code == 0
    assert invoke(config, "provider", "remove", "b.example").exit_code == 0
    assert invoke(config, "restore", "--replace", tmp_path / "copy").exit_code == 0
    assert checked(config) == ["peer c.example"]
