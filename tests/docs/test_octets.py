"""The examples in docs/octets.md are the encodings of their structures, and none is missing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generate.octets import BODIES, FRAMES, Example, bodies, every_example, frames, has_octets
from mimids.http.api.devices import DEVICES
from mimids.http.api.endpoints import AnyEndpoint
from mimids.wire.messages import FrameType

EXAMPLES = list(every_example())
BLOCK = re.compile(r"^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEX = re.compile(r"(?:^| )((?:[0-9a-f]{2})+)(?:  //.*)?$")


def octets_of(block: str) -> bytes:
    """Return the octets in the lines of a block, one after the other."""
    return b"".join(bytes.fromhex(found[1]) for each in block.splitlines() if (found := HEX.search(each)))


def test_the_lines_of_an_example_are_its_encoding() -> None:
    blocks = BLOCK.findall(bodies() + frames())
    assert len(blocks) == len(EXAMPLES)
    for block, (title, how, value) in zip(blocks, EXAMPLES, strict=True):
        assert octets_of(block) == how.encode(value), title


@pytest.mark.parametrize("example", EXAMPLES, ids=[f"{index} {each[0]}" for index, each in enumerate(EXAMPLES)])
def test_an_example_is_read_as_what_was_written(example: Example) -> None:
    _, how, value = example
    assert how.decode(how.encode(value)) == value


@pytest.mark.parametrize("row", DEVICES, ids=lambda row: row.name)
def test_each_endpoint_has_an_example_of_each_body(row: AnyEndpoint) -> None:
    assert has_octets(row) == (row.name in BODIES)
    titles = [title for title, _, _ in BODIES.get(row.name, ())]
    for body in (row.request_body, row.answer_body):
        if body is not None and body.media_type == "application/mimi-ds":
            for structure in re.findall(r"\b[A-Z]\w+(?: \w+<V>)?", body.schema):
                assert any(title.startswith(structure) for title in titles), structure


def test_each_type_of_frame_has_an_example() -> None:
    assert [frame.type for frame in FRAMES] == list(FrameType)


def test_the_document_is_where_it_is_printed() -> None:
    text = (Path(__file__).parents[2] / "docs" / "octets.md").read_text()
    assert bodies() in text
    assert frames() in text
