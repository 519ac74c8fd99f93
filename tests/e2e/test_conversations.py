"""Every recorded conversation through real processes over TLS, each message through its sender's provider."""

from __future__ import annotations

import ssl

import httpx
import pytest

from mimids.testing import Session
from tests.support.conversations import READERS, catch_up, check_branches, check_welcomes, play, upload_and_fetch
from tests.support.stage import HUB, NAMES, staged

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", READERS)
async def test_a_conversation_between_providers_puts_each_message_into_its_branch(
    name: str, mimids_session: Session
) -> None:
    async with staged(name, mimids_session) as stage:
        await upload_and_fetch(stage)
        sequenced = await play(stage)
        await check_branches(stage, sequenced)
        await check_welcomes(stage, sequenced)
        for provider in NAMES[1:]:
            await catch_up(stage, provider, sequenced)


@pytest.mark.parametrize("name", ["public", "private"])
async def test_messages_that_do_not_parse_are_refused_as_malformed(name: str, mimids_session: Session) -> None:
    async with staged(name, mimids_session) as stage:
        await stage.alice.create_group(stage.recording.creation())
        sender = stage.federation[HUB].add_device("alice", "another")
        trust = ssl.create_default_context(cafile=sender.ca_file)
        async with httpx.AsyncClient(verify=trust, base_url=sender.url) as http:
            for line in stage.recording.malformed():
                key = bytes.fromhex(line["partition_key"])
                answer = await http.post(
                    f"/client/v1/hubs/{HUB}/send",
                    content=bytes.fromhex(line["bytes"]) + key + bytes(16) + b"\0\0",
                    headers={"Authorization": f"Bearer {sender.token}", "Content-Type": "application/mimi-ds"},
                )
                assert answer.status_code == 400, line["name"]
                assert answer.json()["type"] == "urn:mimids:problem:malformed", line["name"]
        assert stage.federation[HUB].read("SELECT count(*) FROM messages") == [(0,)]
