from __future__ import annotations

from collections.abc import Iterator

import pytest

from mimids.ohttp import bhttp
from mimids.ohttp.config import encode_keys, key_config
from mimids.ohttp.gateway import open_request, read_request
from mimids.ohttp.hpke import Aead, PrivateKey
from mimids.ohttp.padding import pad_response
from tests.support.independent_ohttp import Answer, IndependentClient, independent_client

PRIVATE = PrivateKey(b"p" * 32)
KEYS = encode_keys((key_config(9, PRIVATE),))
DATE = "Tue, 24 Nov 2026 10:00:00 GMT"
HEADERS = [("content-type", "application/mimi-ds"), ("date", DATE)]


@pytest.fixture(name="client", scope="module")
def _client() -> Iterator[IndependentClient]:
    with independent_client() as client:
        yield client


@pytest.mark.parametrize("aead", list(Aead))
@pytest.mark.parametrize("indeterminate", [False, True], ids=["known", "indeterminate"])
def test_a_request_of_another_implementation_opens_and_it_reads_the_response(
    client: IndependentClient, aead: Aead, indeterminate: bool
) -> None:
    body = bytes(range(256)) * 3
    url = "https://b.example/key-packages"  # bhttp-js 0.2.1 leaves the query out of the path, so none here
    opened = open_request(client.encapsulate(KEYS, "POST", url, HEADERS, body, aead=aead), {9: PRIVATE})
    request = read_request(opened)
    assert (request.method, request.authority, request.path) == ("POST", "b.example", "/key-packages")
    assert (request.field(b"content-type"), request.field(b"date")) == (b"application/mimi-ds", DATE.encode())
    assert request.content == body

    response = bhttp.Response(403, ((b"content-type", b"application/problem+json"),), b'{"status":403}')
    padded = pad_response(bhttp.encode_response(response, indeterminate=indeterminate))
    answer = client.decapsulate(opened.sealer.seal(padded, b"n" * opened.sealer.nonce_size))
    assert answer == Answer(403, {"content-type": "application/problem+json"}, response.content)


def test_the_other_implementation_refuses_a_response_that_was_changed(client: IndependentClient) -> None:
    opened = open_request(client.encapsulate(KEYS, "GET", "https://b.example/", [], b""), {9: PRIVATE})
    sealed = opened.sealer.seal(bhttp.encode_response(bhttp.Response(200)), b"n" * 16)
    with pytest.raises(ValueError, match="Error"):
        client.decapsulate(sealed[:-1] + bytes([sealed[-1] ^ 1]))
    assert client.decapsulate(sealed).status == 200
