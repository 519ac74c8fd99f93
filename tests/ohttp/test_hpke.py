from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from mimids.ohttp.hpke import KEY_SIZE, Aead, HpkeError, HpkeSender, PrivateKey, Recipient
from tests import vectors

RECIPIENT = PrivateKey(b"r" * 32)
EPHEMERAL = PrivateKey(b"e" * 32)
AEADS = pytest.mark.parametrize("aead", list(Aead))

# Points of order 1, 2, 4 and 8, and forms of them that are not reduced: each makes the shared secret zero.
SMALL_ORDER = [
    (0).to_bytes(32, "little"),
    (1).to_bytes(32, "little"),
    (2**255 - 20).to_bytes(32, "little"),  # p - 1
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
]


@AEADS
@given(plaintexts=st.lists(st.binary(max_size=100), max_size=4), info=st.binary(max_size=40))
def test_one_side_encrypts_and_the_other_decrypts_in_sequence(aead: Aead, plaintexts: list[bytes], info: bytes) -> None:
    sender = HpkeSender(RECIPIENT.public, info, aead, EPHEMERAL)
    recipient = Recipient(sender.enc, RECIPIENT, info, aead)
    for plaintext in plaintexts:
        assert recipient.open(sender.seal(plaintext)) == plaintext
    assert sender.export(b"context", 77) == recipient.export(b"context", 77)


@AEADS
def test_messages_out_of_order_do_not_decrypt(aead: Aead) -> None:
    sender = HpkeSender(RECIPIENT.public, b"", aead, EPHEMERAL)
    sealed = [sender.seal(b"first"), sender.seal(b"second")]
    with pytest.raises(HpkeError):
        Recipient(sender.enc, RECIPIENT, b"", aead).open(sealed[1])


@AEADS
def test_another_info_key_or_associated_data_does_not_decrypt(aead: Aead) -> None:
    sender = HpkeSender(RECIPIENT.public, b"info", aead, EPHEMERAL)
    sealed = sender.seal(b"text", b"data")
    assert Recipient(sender.enc, RECIPIENT, b"info", aead).open(sealed, b"data") == b"text"
    for private, info, aad in [(EPHEMERAL, b"info", b"data"), (RECIPIENT, b"", b"data"), (RECIPIENT, b"info", b"")]:
        with pytest.raises(HpkeError):
            Recipient(sender.enc, private, info, aead).open(sealed, aad)


@pytest.mark.parametrize("point", SMALL_ORDER, ids=range(len(SMALL_ORDER)))
def test_points_of_small_order_are_refused_on_both_sides(point: bytes) -> None:
    with pytest.raises(HpkeError):
        Recipient(point, RECIPIENT, b"", Aead.AES_128_GCM)
    with pytest.raises(HpkeError):
        HpkeSender(point, b"", Aead.AES_128_GCM, EPHEMERAL)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_keys_of_another_size_are_refused(size: int) -> None:
    with pytest.raises(HpkeError):
        Recipient(b"k" * size, RECIPIENT, b"", Aead.AES_128_GCM)
    with pytest.raises(HpkeError):
        HpkeSender(b"k" * size, b"", Aead.AES_128_GCM, EPHEMERAL)
    with pytest.raises(ValueError, match="32 octets"):
        PrivateKey(b"k" * size)


def test_a_private_key_does_not_print_itself() -> None:
    assert repr(RECIPIENT) == "<PrivateKey: 32 octets>"


@AEADS
def test_a_second_implementation_agrees(aead: Aead) -> None:
    hpke = pytest.importorskip("cryptography.hazmat.primitives.hpke", reason="cryptography without HPKE")
    theirs = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, getattr(hpke.AEAD, aead.name))
    info, plaintext = b"some info", b"some text"
    sealed = theirs.encrypt(plaintext, X25519PublicKey.from_public_bytes(RECIPIENT.public), info)
    enc, ciphertext = sealed[:KEY_SIZE], sealed[KEY_SIZE:]
    assert Recipient(enc, RECIPIENT, info, aead).open(ciphertext) == plaintext
    sender = HpkeSender(RECIPIENT.public, info, aead, EPHEMERAL)
    private = X25519PrivateKey.from_private_bytes(RECIPIENT.reveal())
    assert theirs.decrypt(sender.enc + sender.seal(plaintext), private, info) == plaintext


def test_the_vectors_of_rfc_9180_pass() -> None:
    """The vectors of our cipher suites in base mode; the file has the form of the CFRG's test-vectors.json."""
    ours: list[dict[str, Any]] = [
        vector
        for vector in vectors.load("hpke/test-vectors.json")
        if (vector["mode"], vector["kem_id"], vector["kdf_id"]) == (0, 0x20, 1) and vector["aead_id"] in list(Aead)
    ]
    assert {vector["aead_id"] for vector in ours} == set(Aead)
    for vector in ours:
        text = {key: bytes.fromhex(value) for key, value in vector.items() if isinstance(value, str)}
        aead = Aead(vector["aead_id"])
        private, ephemeral = PrivateKey(text["skRm"]), PrivateKey(text["skEm"])
        assert (private.public, ephemeral.public) == (text["pkRm"], text["pkEm"])
        sender = HpkeSender(private.public, text["info"], aead, ephemeral)
        recipient = Recipient(text["enc"], private, text["info"], aead)
        assert sender.enc == text["enc"]
        for encryption in vector["encryptions"]:
            aad, ct, pt = (bytes.fromhex(encryption[name]) for name in ("aad", "ct", "pt"))
            assert sender.seal(pt, aad) == ct
            assert recipient.open(ct, aad) == pt
        for export in vector["exports"]:
            context, value = bytes.fromhex(export["exporter_context"]), bytes.fromhex(export["exported_value"])
            assert sender.export(context, export["L"]) == recipient.export(context, export["L"]) == value
