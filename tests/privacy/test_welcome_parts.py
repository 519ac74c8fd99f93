"""A provider learns nothing of the other newcomers from a Welcome, and cannot write to them."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest

from mimids.errors import WelcomeNotExpected
from mimids.mls.framing import MLSMessage
from mimids.mls.proposals import HpkeCiphertext
from mimids.mls.welcome import EncryptedGroupSecrets, Welcome
from mimids.values import DeviceRow
from mimids.wire.declare import decode, encode
from mimids.wire.ids import MLS10, CipherSuite, KeyPackageRef, ProviderId
from mimids.wire.messages import CommitData, SendRequest, WelcomeData, WelcomeInitRequest
from tests.support.federation import COMMIT, Room, device, federated
from tests.support.provider import Assembled
from tests.support.stored import rows, until
from tests.support.welcomes import hand_out, has_states, welcome_to

A, B, C, EVIL = (ProviderId(f"{name}.example") for name in ("a", "b", "c", "evil"))
BOB, BOBS_TABLET, CAROL = (KeyPackageRef(name.ljust(32, b".")) for name in (b"bob", b"bob's tablet", b"carol"))


async def invite_all(hub: Assembled, *recipients: tuple[KeyPackageRef, ProviderId], octets: int = 1) -> None:
    """Create a group whose first commit adds these; each secret has this many octets."""
    room = Room()
    following = room.new_key()
    await hub.services.hub.create_group(room.creation(), device(hub))
    secrets = tuple(
        EncryptedGroupSecrets(ref, HpkeCiphertext(bytes(32), bytes([at]) * octets))
        for at, (ref, _) in enumerate(recipients)
    )
    welcome = encode(MLSMessage(MLS10, welcome_to().wire_format, Welcome(CipherSuite(1), secrets, b"info")))
    named = WelcomeData(decode(MLSMessage, welcome), tuple(provider for _, provider in recipients))
    commit = SendRequest(room.message("add", kind=COMMIT), room.key, CommitData(following, None, named))
    await hub.services.hub.send(commit, device(hub))
    await hub.services.hub.send(room.send("hello", following), device(hub))


async def inbox(provider: Assembled) -> list[Welcome]:
    """Return the Welcomes for the first device of a provider."""
    received = [
        decode(MLSMessage, each.body).message for each in await provider.services.incoming_welcomes.inbox(DeviceRow(1))
    ]
    return [each for each in received if isinstance(each, Welcome)]


@pytest.mark.parametrize("octets", [1, 20_000])  # of a secret: a long Welcome is encoded in a thread
async def test_each_provider_gets_the_secrets_for_its_own_devices_only(octets: int, tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, C) as (hub, b, c):
        await hand_out(b, BOB)
        await hand_out(c, CAROL)
        another = (
            "INSERT INTO key_package_refs (ref, init_key, device, version, cipher_suite, expires_at, claimed_at)"
            " SELECT ?1, ?1, device, version, cipher_suite, expires_at, claimed_at FROM key_package_refs"
        )
        await b.services.store.write(lambda tx: tx.execute(another, (BOBS_TABLET,)))
        await invite_all(hub, (BOB, B), (CAROL, C), (BOBS_TABLET, B), octets=octets)
        await until(lambda: has_states(hub, "delivered", "delivered"))
        (at_b,), (at_c,) = await inbox(b), await inbox(c)
        assert at_b.key_package_refs == (BOB, BOBS_TABLET)
        assert at_c.key_package_refs == (CAROL,)
        assert [secret.encrypted_group_secrets.ciphertext[0] for secret in at_b.secrets] == [0, 2]
        assert at_b.encrypted_group_info == at_c.encrypted_group_info == b"info"
        assert BOB.hex() not in c.dump().lower()
        assert CAROL.hex() not in b.dump().lower()


async def test_a_reference_that_a_provider_did_not_accept_is_not_in_its_welcome(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B) as (hub, b):
        await hand_out(b, BOB)
        await invite_all(hub, (BOB, B), (CAROL, B))
        await until(lambda: has_states(hub, "delivered", "refused"))
        assert [welcome.key_package_refs for welcome in await inbox(b)] == [(BOB,)]


async def test_a_forged_welcome_from_the_provider_of_another_newcomer_is_refused(tmp_path: Path) -> None:
    async with federated(tmp_path, A, B, C) as (hub, b, c):
        await hand_out(b, BOB)
        await hand_out(c, CAROL)
        await invite_all(hub, (BOB, B), (CAROL, C))
        await until(lambda: has_states(hub, "delivered", "delivered"))
        incoming = b.services.incoming_welcomes
        assert (await incoming.init(C, WelcomeInitRequest((BOB,)))).accepted == ()
        with pytest.raises(WelcomeNotExpected):
            await incoming.store(C, welcome_to(BOB))
        assert len(await inbox(b)) == 1
        assert (await incoming.init(A, WelcomeInitRequest((BOB,)))).accepted == (BOB,), "its hub may offer it again"


@pytest.mark.parametrize("hubs", list(permutations((A, C, EVIL))))
async def test_a_reference_is_accepted_from_the_first_hub_only(hubs: tuple[ProviderId, ...], tmp_path: Path) -> None:
    async with federated(tmp_path, B, jobs_of=(), federation={"allow": [A, C, EVIL]}) as (b,):
        await hand_out(b, BOB)
        incoming, request = b.services.incoming_welcomes, WelcomeInitRequest((BOB,))
        answers = [(await incoming.init(hub, request)).accepted for hub in (*hubs, *hubs)]
        assert answers == [(BOB,), (), ()] * 2


async def test_a_last_resort_is_accepted_from_every_hub_even_when_it_was_replaced(tmp_path: Path) -> None:
    async with federated(tmp_path, B, jobs_of=(), federation={"allow": [A, C]}) as (b,):
        await hand_out(b, BOB)
        await b.services.store.write(lambda tx: tx.execute("UPDATE key_package_refs SET reusable = 1"))
        assert not await rows(b, "SELECT 1 FROM key_packages")
        for hub in (A, C, B):
            answer = await b.services.incoming_welcomes.init(hub, WelcomeInitRequest((BOB,)))
            assert answer.accepted == (BOB,)
