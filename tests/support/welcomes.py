"""Welcomes for tests: their messages, an invitation, and how far the hub has come with one."""

from __future__ import annotations

from mimids.mls.code_points import WireFormat
from mimids.mls.framing import MLSMessage
from mimids.mls.proposals import HpkeCiphertext
from mimids.mls.welcome import EncryptedGroupSecrets, Welcome
from mimids.wire.declare import encode
from mimids.wire.ids import MLS10, CipherSuite, KeyPackageRef, PartitionKey, ProviderId
from mimids.wire.messages import CommitData, SendRequest, WelcomeData
from tests.support.federation import COMMIT, Room, device
from tests.support.mls_makers import replace
from tests.support.provider import Assembled
from tests.support.stored import rows, until

REF = KeyPackageRef(b"of a KeyPackage of Bob's".ljust(32, b"."))


def welcome_to(*refs: KeyPackageRef) -> MLSMessage:
    """Return a Welcome for these KeyPackages; nothing in it is encrypted."""
    secrets = tuple(EncryptedGroupSecrets(ref, HpkeCiphertext(b"k", b"c")) for ref in refs)
    return MLSMessage(MLS10, WireFormat.WELCOME, Welcome(CipherSuite(1), secrets, b"info"))


def part_for(provider: str, data: WelcomeData) -> bytes:
    """Return what a provider gets of a Welcome, an encoded MLSMessage: the secrets for its own users only."""
    welcome = data.welcome.message
    assert isinstance(welcome, Welcome)
    secrets = zip(welcome.secrets, data.service_providers, strict=True)
    own = tuple(secret for secret, at in secrets if at == provider)
    return encode(replace(data.welcome, message=replace(welcome, secrets=own)))


async def invite(hub: Assembled, room: Room, to: str = "b.example") -> PartitionKey:
    """Create a group in which Alice's first commit adds Bob, who is at `to`; return the key of the new partition."""
    following = room.new_key()
    await hub.services.hub.create_group(room.creation(), device(hub))
    data = CommitData(following, None, WelcomeData(welcome_to(REF), (ProviderId(to),)))
    await hub.services.hub.send(SendRequest(room.message("add", kind=COMMIT), room.key, data), device(hub))
    return following


async def hand_out(provider: Assembled, ref: KeyPackageRef = REF) -> None:
    """Record that a KeyPackage of the provider's first device was claimed."""
    await provider.add_device("bob")
    sql = (
        "INSERT INTO key_package_refs (ref, init_key, device, version, cipher_suite, expires_at, claimed_at)"
        " VALUES (?, ?, 1, 1, 1, ?, 1)"
    )
    await provider.services.store.write(lambda tx: tx.execute(sql, (ref, ref, 1 << 50)))


async def states(hub: Assembled) -> list[str]:
    """Return the states of the outgoing Welcomes of a hub, oldest first."""
    return [row[0] for row in await rows(hub, "SELECT state FROM outgoing_welcomes ORDER BY id")]


async def has_states(hub: Assembled, *wanted: str) -> bool:
    """Tell whether the outgoing Welcomes of a hub are in these states, oldest first."""
    return await states(hub) == [*wanted]


async def reaches(hub: Assembled, state: str) -> None:
    """Wait until the only outgoing Welcome of a hub is in this state."""
    await until(lambda: has_states(hub, state))
