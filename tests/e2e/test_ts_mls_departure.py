"""ts-mls members accept and commit what their provider proposes when a device is removed."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import trio

from mimids.client import Device, requests
from mimids.mls.code_points import ContentType
from mimids.testing import Session, open_federation
from mimids.wire.ids import CipherSuite, GroupId, PartitionKey, ProviderId
from tests.support.played import TS_MLS, note
from tests.support.stage import eventually
from tests.support.ts_mls import running

SUITE = CipherSuite(1)

pytestmark = pytest.mark.slow


def key(epoch: dict[str, Any]) -> PartitionKey:
    return PartitionKey.from_hex(epoch["key"])


def info(epoch: dict[str, Any]) -> bytes:
    return bytes.fromhex(epoch["group_info"])


async def commit(device: Device, hub: ProviderId, before: dict[str, Any], made: dict[str, Any]) -> None:
    """Send a commit with the GroupInfo of the epoch after it."""
    message, after = bytes.fromhex(made["commit"]), made["after"]
    await device.send(hub, requests.commit(message, key(before), key(after), group_info=info(after)))


async def test_ts_mls_members_commit_the_remove_of_their_provider(mimids_session: Session) -> None:
    hub = ProviderId("a.example")
    note(TS_MLS, SUITE, "create", "add", "Remove by a provider")
    note(TS_MLS, SUITE, "public handshakes", "tree in GroupInfo and Welcome", "linear group")
    with running("ts_mls_departure.mjs") as members:
        async with open_federation(hub, session=mimids_session) as (a,):
            accounts = [await trio.to_thread.run_sync(a.add_device, name) for name in ("alice", "bob", "carol")]
            async with accounts[0].client() as alice, accounts[1].client() as bob:
                senders = await alice.external_senders(SUITE, bare=True)
                made = await trio.to_thread.run_sync(partial(members.ask, external_senders=senders.hex()))
                group_id, created = GroupId(bytes.fromhex(made["group_id"])), made["created"]
                await alice.create_group(
                    requests.creation(group_id, SUITE, key(created), group_info=info(created)), linear=True
                )
                await commit(alice, hub, created, made)
                added = made["after"]
                assert added["members"] == [f"{each.user_id}/d/phone" for each in accounts]

                await trio.to_thread.run_sync(partial(a.command, "device remove", user="carol", name="phone"))
                (proposed,) = await eventually(partial(bob.receive, hub, key(added)), seconds=30)
                assert proposed.message.content_type is ContentType.PROPOSAL
                removed = await trio.to_thread.run_sync(partial(members.ask, remove=proposed.message.encoded.hex()))
                await commit(bob, hub, added, removed)
                assert removed["after"]["members"] == added["members"][:2]
                ((knowledge, root),) = a.read(
                    "SELECT knowledge, root_hash FROM partitions WHERE masked_key = ?", [key(removed["after"]).mask(32)]
                )
                assert (knowledge, root.hex()) == ("derived", removed["after"]["tree_hash"])

                async def nothing_is_left() -> bool:
                    return not (await trio.to_thread.run_sync(a.command, "device removals"))["removals"]

                await eventually(nothing_is_left, seconds=30)
