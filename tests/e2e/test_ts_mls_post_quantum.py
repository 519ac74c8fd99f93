"""A group of ts-mls members with a post-quantum suite, recorded by node, sent through two live providers."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from mimids.client import requests
from mimids.mls.group_info import GroupInfo
from mimids.mls.welcome import Welcome
from mimids.testing import Session, open_federation
from mimids.wire.ids import CipherSuite, GroupId, PartitionKey, ProviderId
from tests.support import ts_mls
from tests.support.played import TS_MLS, note
from tests.support.stage import eventually

SUITE, NAME = CipherSuite(0x004D), "MLS_128_MLKEM512_AES128GCM_SHA256_Ed25519"
HEAD = b"\0\1\0\5"  # version and wire format of an MLSMessage that holds a KeyPackage

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    program = ts_mls.command("ts_mls.mjs", NAME)
    ran = subprocess.run(program, cwd=ts_mls.HOME, capture_output=True, text=True, check=True, timeout=60)
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def octets(recorded: dict[str, Any], name: str) -> bytes | None:
    return None if recorded[name] is None else bytes.fromhex(recorded[name])


# Longer than 40 lines: one story, in which each step needs the one before.
async def test_a_group_with_code_point_0x004d_is_followed_to_its_end(
    recorded: dict[str, Any], mimids_session: Session
) -> None:
    hub, group_id = ProviderId("a.example"), GroupId(bytes.fromhex(recorded["group_id"]))
    package = bytes.fromhex(recorded["bob"]).removeprefix(HEAD)
    note(TS_MLS, SUITE, "create", "add", "update", "external join")
    note(TS_MLS, SUITE, "public handshakes", "tree in GroupInfo and Welcome", "forking group")
    async with open_federation("a.example", "b.example", session=mimids_session) as (a, b):
        accounts = {"alice": a.add_device("alice"), "bob": b.add_device("bob"), "carol": b.add_device("carol")}
        async with (
            accounts["alice"].client() as alice,
            accounts["bob"].client() as bob,
            accounts["carol"].client() as carol,
        ):
            devices = {"alice": alice, "bob": bob, "carol": carol}
            assert (await bob.upload([package])).accepted == 1
            assert await alice.fetch_key_package(b.contact("bob"), SUITE) == package
            info = octets(recorded, "group_info")
            key = PartitionKey.from_hex(recorded["key"])
            await alice.create_group(requests.creation(group_id, SUITE, key, group_info=info))
            for commit in recorded["commits"]:
                device, message = devices[commit["by"]], bytes.fromhex(commit["message"])
                following, info = PartitionKey.from_hex(commit["next"]), octets(commit, "group_info")
                if commit["by"] == "carol":
                    answer = await carol.join(hub, requests.external_join(message, following, group_info=info))
                else:
                    welcome = octets(commit, "welcome")
                    request = requests.commit(
                        message,
                        PartitionKey.from_hex(commit["key"]),
                        following,
                        group_info=info,
                        welcome=welcome,
                        service_providers=[] if welcome is None else [ProviderId(b.name)],
                    )
                    answer = await device.send(hub, request)
                    if welcome is not None:
                        (received,) = await eventually(bob.welcomes)
                        assert isinstance(received.welcome.message, Welcome)
                        assert received.welcome.encoded == welcome
                assert (answer.detached, answer.earlier_commits) == (0, ())
            found = (await carol.group_info(hub, group_id)).info.group_info.message
            assert isinstance(found, GroupInfo)
            assert found.group_context.tree_hash.hex() == recorded["tree_hash"]
            ((knowledge, root),) = a.read(
                "SELECT knowledge, root_hash FROM partitions WHERE masked_key = ?",
                [PartitionKey.from_hex(recorded["commits"][-1]["next"]).mask(32)],
            )
            assert (knowledge, root.hex()) == ("derived", recorded["tree_hash"])
