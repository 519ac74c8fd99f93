"""The exchange in docs/ohttp.md, computed again by code that shares nothing with mimids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag

from docs.generate.octets import BOB, TOKEN
from docs.generate.ohttp import ASKED_AT, EPHEMERAL_KEY, as_json, example
from mimids.cli.demo.recording import Recording
from tests.support.plain_client import plain_octets

DOCS = Path(__file__).parents[2] / "docs"
VALUES = {name: bytes.fromhex(value) for name, value in json.loads(as_json()).items()}


def test_the_documents_have_these_values() -> None:
    assert (DOCS / "ohttp-example.json").read_text() == as_json()
    assert example() in (DOCS / "ohttp.md").read_text()


def test_another_client_makes_the_request() -> None:
    client = plain_octets()
    asked = client.vector(BOB) + client.vector(TOKEN.reveal()) + client.uint(2, 1) + client.uint(2, 1)
    assert asked == VALUES["KeyPackageRequest"]
    fields = {"content-type": "application/mimi-ds", "date": ASKED_AT.decode()}
    request = client.binary_request("b.example", "/key-packages", fields, asked)
    assert request == VALUES["request"]
    sealed = client.SealedRequest(VALUES["ohttp-keys"], client.padded(request), EPHEMERAL_KEY.reveal())
    assert sealed.hpke.enc == VALUES["enc"]
    assert sealed.message == VALUES["message/ohttp-req"]
    assert sealed.hpke.export(b"message/bhttp response", 16) == VALUES["secret"]


def test_another_client_opens_the_answer() -> None:
    client = plain_octets()
    sealed = client.SealedRequest(VALUES["ohttp-keys"], client.padded(VALUES["request"]), EPHEMERAL_KEY.reveal())
    opened = sealed.open(VALUES["message/ohttp-res"])
    assert opened == VALUES["response"].ljust(2048, b"\0")
    status, answer_fields, content = client.binary_response(opened)
    assert (status, answer_fields["content-type"]) == (200, "application/mimi-ds")
    assert content == Recording().key_packages["bob"]
    with pytest.raises(InvalidTag):
        sealed.open(VALUES["message/ohttp-res"][:-1])
