"""The Python and TypeScript codecs accept the same octets and write the same octets."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from docs.generate import typescript
from mimids.mls.framing import MLSMessage
from mimids.wire import messages
from mimids.wire.codec import Codec, WireError
from mimids.wire.declare import decode, encode
from mimids.wire.ids import spelling_fault
from tests.support.typescript import HOME, Driver, driver
from tests.support.wire_examples import EXAMPLES
from tests.vectors import load_lines

CHANGED = 60  # variants of each example


@pytest.fixture(scope="module")
def client() -> Iterator[Driver]:
    with driver() as running:
        yield running


def python(codec: str, octets: bytes) -> dict[str, str]:
    """Do in Python what `recode` of the driver does."""
    found: Any = getattr(messages, codec, MLSMessage)
    try:
        if isinstance(found, Codec):
            return {"octets": found.encode(found.decode(octets)).hex()}
        return {"octets": encode(decode(found, octets)).hex()}
    except WireError as error:
        return {"refused": str(error)}


def test_the_codecs_are_those_that_are_printed() -> None:
    source = HOME / "src"
    printed = {"mls.ts": typescript.mls(), "messages.ts": typescript.wire_messages()}
    for name, text in printed.items():
        assert (source / name).read_text(encoding="utf-8") == text, "run `make clients`"


@pytest.mark.parametrize(("value", "octets"), EXAMPLES, ids=[type(value).__name__ for value, _ in EXAMPLES])
def test_each_example_is_read_and_written_and_refused_alike(value: Any, octets: str, client: Driver) -> None:
    whole, name = bytes.fromhex(octets), type(value).__name__
    assert client.ask("recode", codec=name, octets=whole.hex()) == {"octets": whole.hex()}
    rng = random.Random(octets)
    for _ in range(CHANGED):
        changed = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(changed) + 1)
            match rng.randrange(3):
                case 0:
                    changed[at:at] = bytes([rng.choice((0, 1, 2, 0x3F, 0x40, 0x80, 0xFF))])
                case 1:
                    del changed[at : at + 1]
                case _:
                    changed[at : at + 1] = bytes([rng.randrange(256)])
        found = client.ask("recode", codec=name, octets=bytes(changed).hex())
        expected = python(name, bytes(changed))
        assert found.keys() == expected.keys(), (changed.hex(), found, expected)
        if "octets" in expected:
            assert found == expected


@pytest.mark.parametrize("file", ["public", "private", "rules", "policy", "rooms", "mls-rs-f003", "x509"])
def test_messages_of_mls_libraries_are_read_alike(file: str, client: Driver) -> None:
    rng = random.Random(file)
    for line in load_lines(f"conversations/{file}.jsonl"):
        octets = bytes.fromhex(line["bytes"]) if "bytes" in line else b""
        if not octets:
            continue
        for changed in (octets, octets[:-1], _changed(octets, rng), _changed(octets, rng)):
            found = client.ask("recode", codec="MLSMessage", octets=changed.hex())
            expected = python("MLSMessage", changed)
            assert found.keys() == expected.keys(), (changed.hex(), found, expected)


def _changed(octets: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(octets))
    return octets[:at] + bytes([rng.randrange(256)]) + octets[at + 1 :]


def test_names_are_spelt_alike(client: Driver) -> None:
    texts = [
        "a.example",
        "a",
        "1.2.3.4",
        "a.0x1f",
        "a.example.",
        "A.example",
        "-a.example",
        "a" * 64 + ".example",
        ".".join(["a" * 60] * 5),
        "mimi://a.example/u/alice",
        "mimi://a.example/u/al%20ice",
        "mimi://a.example/u/al%2dice",
        "mimi://a.example/u/al%c3%a4",
        "mimi://a.example/u/al%C3%A4",
        "mimi://a.example/u/..",
        "mimi://a.example/u/%00",
        "mimi://a.example/u/alice/d/phone",
        "mimi://A.example/u/alice",
        "MIMI://a.example/u/alice",
        "mimi://a.example/u/",
        "mimi://1.2.3.4/u/alice",
    ]
    answer = client.ask("names", texts=texts)
    providers = [
        python("Present", bytes([len(text)]) + text.encode() + b"\0").keys() == {"octets"} for text in texts[:7]
    ]
    assert answer["providers"][:7] == providers
    assert answer["users"] == [spelling_fault(text.encode()) is None for text in texts]
