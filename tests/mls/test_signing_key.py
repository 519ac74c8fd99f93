"""Keys from seeds, and the Remove that they sign for a sender outside the group."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from mimids.mls import signing_key
from mimids.mls.code_points import ExtensionType
from mimids.mls.framing import MLSMessage
from mimids.mls.group_info import EXTERNAL_SENDERS, ExternalSender
from mimids.mls.leaf_node import Extension, SignaturePublicKey
from mimids.mls.opening import open_group
from mimids.mls.public_group import Valid
from mimids.mls.rules.checks import check
from mimids.mls.rules.verdict import SIGNATURE, Invalid
from mimids.mls.signing_key import SCHEMES, SigningKey, cipher_suites_of
from mimids.mls.suites import SUITES, sign_with_label, verify_with_label
from mimids.wire.declare import decode, encode
from tests.support.public_groups import OUTSIDER
from tests.support.signing import Client, Room

SEED = bytes(range(32))


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_a_key_follows_from_its_seed_and_signs_for_every_suite_of_its_scheme(scheme: str) -> None:
    key = SigningKey.of(scheme, SEED)
    assert key == SigningKey.of(scheme, SEED)
    assert key.public != SigningKey.of(scheme, SEED[::-1]).public
    assert cipher_suites_of(scheme)
    for code in cipher_suites_of(scheme):
        suite = SUITES[code]
        assert suite.signature_key_fits(key.public)
        signature = sign_with_label(suite, key.private.reveal(), b"Label", b"content")
        assert verify_with_label(suite, key.public, b"Label", b"content", signature)


def test_every_suite_has_a_scheme_of_which_keys_can_be_made() -> None:
    assert {suite.scheme for suite in SUITES.values()} <= SCHEMES


def test_orders_are_those_of_the_curves() -> None:
    for curve, order in signing_key._CURVES.values():
        ec.derive_private_key(order - 1, curve)
        with pytest.raises(ValueError, match=r".*"):
            ec.derive_private_key(order, curve)


def test_a_key_shows_no_private_octets() -> None:
    key = SigningKey.of("Ed25519", SEED)
    assert SEED.hex() not in repr(key)
    assert repr(SEED) not in repr(key)


@pytest.mark.parametrize("code", [1, 2])
def test_a_remove_is_valid_for_the_sender_that_the_group_lists_and_for_no_other(code: int) -> None:
    suite = SUITES[code]
    key = SigningKey.of(suite.scheme, SEED)
    listed = (
        ExternalSender(Client.of(71, suite=code).signer.public, OUTSIDER.credential),
        ExternalSender(SignaturePublicKey(key.public), OUTSIDER.credential),
    )
    senders = Extension(ExtensionType.EXTERNAL_SENDERS, EXTERNAL_SENDERS.encode(listed))
    room = Room.create(Client.of(1, suite=code), senders)
    group = open_group(room.info())
    message = decode(MLSMessage, encode(key.remove(group, 1, 0)))
    assert isinstance(check(group, message), Valid)
    wrong = check(group, key.remove(group, 0, 0))
    assert isinstance(wrong, Invalid)
    assert wrong.rule is SIGNATURE
