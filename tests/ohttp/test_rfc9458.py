"""Appendix A of RFC 9458, byte for byte, on both sides; the chunked draft's example, as far as HPKE goes."""

from __future__ import annotations

import pytest

from mimids.ohttp import bhttp
from mimids.ohttp.client import encapsulate
from mimids.ohttp.config import KEY_CONFIG, key_config
from mimids.ohttp.encapsulation import ResponseCipher
from mimids.ohttp.gateway import open_request, read_request
from mimids.ohttp.hpke import Aead, HpkeSender, PrivateKey, Recipient
from mimids.wire import varint
from tests import vectors

Vector = dict[str, bytes]


def load(name: str) -> Vector:
    raw = vectors.load(name)
    return {key: bytes.fromhex(value) for key, value in raw.items() if isinstance(value, str) and key != "source"}


@pytest.fixture(name="vector")
def appendix_a() -> Vector:
    return load("ohttp/rfc9458-appendix-a.json")


def test_the_key_configuration_is_that_of_the_appendix(vector: Vector) -> None:
    config = KEY_CONFIG.decode(vector["key_config"])
    assert config == key_config(1, PrivateKey(vector["gateway_secret_key"]))
    assert KEY_CONFIG.encode(config) == vector["key_config"]


def test_the_client_makes_the_request_and_opens_the_response(vector: Vector) -> None:
    config = KEY_CONFIG.decode(vector["key_config"])
    made = encapsulate(config, vector["request_bhttp"], vector["ephemeral_secret_key"])
    assert made.message == vector["encapsulated_request"]
    assert made.opener.open(vector["encapsulated_response"]) == vector["response_bhttp"]


def test_the_gateway_opens_the_request_and_makes_the_response(vector: Vector) -> None:
    opened = open_request(vector["encapsulated_request"], {1: PrivateKey(vector["gateway_secret_key"])})
    assert (opened.key_id, opened.enc, opened.request) == (1, vector["enc"], vector["request_bhttp"])
    assert opened.sealer.nonce_size == len(vector["response_nonce"])
    assert opened.sealer.seal(vector["response_bhttp"], vector["response_nonce"]) == vector["encapsulated_response"]
    assert read_request(opened) == bhttp.Request("GET", "https", "example.com", "/")
    assert bhttp.decode_response(vector["response_bhttp"]) == bhttp.Response(200)


def chunks(framed: bytes) -> list[tuple[bytes, bytes]]:
    """Split chunks into (ciphertext, associated data); the last has length 0 and runs to the end."""
    found: list[tuple[bytes, bytes]] = []
    pos = 0
    while True:
        size, pos = varint.read_quic(framed, pos, len(framed))
        if size == 0:
            return [*found, (framed[pos:], b"final")]
        found.append((framed[pos : pos + size], b""))
        pos += size


def test_hpke_encrypts_and_decrypts_messages_in_sequence() -> None:
    vector = load("ohttp/chunked-ohttp-example.json")
    private, ephemeral = PrivateKey(vector["gateway_secret_key"]), PrivateKey(vector["ephemeral_secret_key"])
    recipient = Recipient(vector["enc"], private, vector["info"], Aead.AES_128_GCM)
    sender = HpkeSender(private.public, vector["info"], Aead.AES_128_GCM, ephemeral)
    assert sender.enc == vector["enc"]
    plain = b""
    for ciphertext, aad in chunks(vector["encapsulated_request"][7 + 32 :]):
        plaintext = recipient.open(ciphertext, aad)
        assert sender.seal(plaintext, aad) == ciphertext
        plain += plaintext
    assert plain == vector["request_bhttp"]
    label = b"message/bhttp chunked response"
    assert sender.export(label, 16) == recipient.export(label, 16) == vector["exported_secret"]


def test_the_first_chunk_of_a_chunked_response_is_encrypted_as_a_response() -> None:
    vector = load("ohttp/chunked-ohttp-example.json")
    cipher = ResponseCipher(Aead.AES_128_GCM, vector["exported_secret"], vector["enc"], vector["response_nonce"])
    first, aad = chunks(vector["encapsulated_response"][16:])[0]
    assert aad == b""
    assert cipher.open(first) == vector["response_bhttp"][:1]
