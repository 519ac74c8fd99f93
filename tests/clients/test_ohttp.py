"""Sealed requests, key signatures and key sets are the same in Python and TypeScript."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest

from mimids.client.key_sets import KeySets
from mimids.client.ohttp import seal
from mimids.ohttp import bhttp
from mimids.ohttp.config import encode_keys, key_config
from mimids.ohttp.date import DATE_SHIFTS, blurred, write_date
from mimids.ohttp.gateway import open_request
from mimids.ohttp.hpke import PrivateKey
from mimids.ohttp.keys_signature import Identity, sign
from mimids.ohttp.padding import pad_response
from mimids.wire.declare import encode
from mimids.wire.ids import MLS10, BearerToken, CipherSuite, ProviderId, UserId
from mimids.wire.messages import (
    EncodedKeyPackage,
    KeyPackageBundleRequest,
    KeyPackageBundleResponse,
    KeyPackageRequest,
    KeyPackageResult,
    KeyPackageStatus,
)
from tests.support.people import key_packages
from tests.support.typescript import Driver, driver

B = ProviderId("b.example")
IDENTITY = Identity(bytes(range(32)))
PRIVATE = PrivateKey(bytes(range(32, 64)))
CONFIG = key_config(7, PRIVATE)
NOW = 1_790_000_000


@pytest.fixture(scope="module")
def client() -> Iterator[Driver]:
    with driver() as running:
        yield running


def requests(count: int) -> tuple[KeyPackageRequest, ...]:
    users = [UserId(b"mimi://b.example/u/user-%d" % number) for number in range(count)]
    return tuple(KeyPackageRequest(user, BearerToken(b"t" * 32), MLS10, CipherSuite(1)) for user in users)


def ask_to_seal(client: Driver, bundle: tuple[KeyPackageRequest, ...], ephemeral: bytes | None) -> bytes:
    answer = client.ask(
        "seal",
        keyId=CONFIG.key_id,
        publicKey=CONFIG.public_key.hex(),
        provider=B,
        requests=encode(KeyPackageBundleRequest(bundle)).hex(),
        date=NOW,
        ephemeral=None if ephemeral is None else ephemeral.hex(),
    )
    return bytes.fromhex(answer["message"])


@pytest.mark.parametrize("count", [1, 11, 12, 13, 64, 1000])
def test_the_same_requests_are_sealed_to_the_same_octets(count: int, client: Driver) -> None:
    bundle, ephemeral = requests(count), random.Random(count).randbytes(32)
    sealed = seal(CONFIG, B, bundle, date_seconds=NOW, ephemeral=ephemeral)
    assert ask_to_seal(client, bundle, ephemeral) == sealed.message


@pytest.mark.parametrize("indeterminate", [False, True])
def test_an_answer_of_the_gateway_is_read(indeterminate: bool, client: Driver) -> None:
    sealed = ask_to_seal(client, requests(2), None)
    opened = open_request(sealed, {CONFIG.key_id: PRIVATE})
    assert bhttp.decode_request(opened.request).path == "/key-packages?bundle"
    package = EncodedKeyPackage(key_packages(3, "bob@b.example", 1)[0])
    results = (
        KeyPackageResult(KeyPackageStatus.OK, package),
        KeyPackageResult(KeyPackageStatus.REFUSED, None),
    )
    body = encode(KeyPackageBundleResponse(results))
    interim = (bhttp.Interim(103, ((b"link", b"x"),)),)
    response = bhttp.Response(200, ((b"content-type", b"application/mimi-ds"),), body, (), interim)
    answer = opened.sealer.seal(pad_response(bhttp.encode_response(response, indeterminate=indeterminate)), bytes(16))
    forged = answer[:-1] + bytes([answer[-1] ^ 1])
    assert "refused" in client.ask("open", answer=forged.hex())  # and the true answer can still be opened
    assert client.ask("open", answer=answer.hex())["results"] == body.hex()


def test_a_wrong_date_names_the_time_of_the_gateway(client: Driver) -> None:
    opened = open_request(ask_to_seal(client, requests(1), None), {CONFIG.key_id: PRIVATE})
    problem = {"type": "https://iana.org/assignments/http-problem-types#date", "status": 400}
    fields = ((b"content-type", b"application/problem+json"), (b"date", write_date(NOW + 600)))
    response = bhttp.Response(400, fields, json.dumps(problem).encode())
    answer = opened.sealer.seal(pad_response(bhttp.encode_response(response)), bytes(16))
    assert client.ask("open", answer=answer.hex()) == {"wrongDate": NOW + 600}


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\1",
        b"\1\x40\xc8",
        b"\1\x40\xc8\0\0\0",
        b"\1\x40\xc8\0\0\0\0\0\0",
        b"\1\x40\xc8\0\0\0\0\1",
        b"\1\x40\x64\0\x40\xc8",
        b"\1\x40\x63",
        b"\2\x40\xc8",
        b"\3\x40\xc8\0\0\0",
        b"\3\x40\xc8\1a\1b\0\2hi\0\0",
        b"\1\x40\xc8\4\1a\1b\2hi",
        b"\1\x40\xc8\5\1a\1b",
        b"\1\x40\xc8\2\0\0",
        b"\1\x40\xc8\0\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\1\x80\0\0\xc8\0\0",
    ],
)
def test_binary_http_is_accepted_and_refused_alike(octets: bytes, client: Driver) -> None:
    found = client.ask("response", octets=octets.hex())
    try:
        response = bhttp.decode_response(octets)
    except ValueError:
        assert "refused" in found
    else:
        fields = [[name.decode(), value.decode()] for name, value in response.fields]
        assert found == {"status": response.status, "fields": fields, "content": response.content.hex()}


def check(client: Driver, header: str, body: bytes, *, provider: str = B, now: int = NOW) -> dict[str, object]:
    identity = IDENTITY.public.hex()
    return client.ask("checkKeys", provider=provider, body=body.hex(), signature=header, identity=identity, now=now)


def test_a_signature_of_keys_is_checked_as_in_python(client: Driver) -> None:
    body = encode_keys((CONFIG,))
    header = sign(B, body, NOW + 60, IDENTITY)
    assert check(client, header, body) == {"keyId": 7, "publicKey": CONFIG.public_key.hex()}
    others = {
        "provider": check(client, header, body, provider="c.example"),
        "body": check(client, header, body[:-1] + b"\7"),
        "expired": check(client, header, body, now=NOW + 61),
        "time": check(client, header.replace(str(NOW + 60), str(NOW + 61)), body),
        "zero": check(client, header.replace("=", "=0", 1), body),
        "none": check(client, "", body),
        "identity": check(client, sign(B, body, NOW + 60, Identity(bytes(32))), body),
        "malformed": check(client, sign(B, body + b"\0", NOW + 60, IDENTITY), body + b"\0"),
        "empty": check(client, sign(B, b"", NOW + 60, IDENTITY), b""),
    }
    for name, answer in others.items():
        assert "refused" in answer, name


def test_dates_are_written_and_blurred_alike(client: Driver) -> None:
    rng = random.Random(1)
    seconds = [rng.randrange(1_700_000_000, 2_000_000_000) for _ in range(50)]
    shifts = [rng.randrange(DATE_SHIFTS) for _ in seconds]
    answer = client.ask("dates", seconds=seconds, shifts=shifts)
    assert answer["written"] == [write_date(each).decode() for each in seconds]
    assert answer["read"] == seconds
    assert answer["blurred"] == [blurred(each, shift) for each, shift in zip(seconds, shifts, strict=True)]


def test_either_library_reads_the_key_sets_of_the_other(client: Driver) -> None:
    body = encode_keys((CONFIG,))
    written = {f"{B} {'A' * 43}": [["AAA", sign(B, body, NOW, IDENTITY)]]}
    text = client.ask("keySets", text=KeySets.from_json(json.dumps(written)).as_json())["text"]
    assert json.loads(KeySets.from_json(text).as_json()) == written
