"""The OHTTP client in node/, which shares no code with mimids."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import attrs
import pytest

HOME = Path(__file__).parent / "node"


@attrs.frozen
class Answer:
    """A response as the client parsed it."""

    status: int
    headers: dict[str, str]
    body: bytes


@attrs.frozen
class IndependentClient:
    """Handles one request at a time: `encapsulate`, then `decapsulate` its response."""

    _questions: IO[str]
    _answers: IO[str]

    def encapsulate(
        self,
        keys: bytes,
        method: str,
        url: str,
        headers: list[tuple[str, str]],
        body: bytes,
        *,
        aead: int = 1,
    ) -> bytes:
        """Return the `message/ohttp-req` of a request, for the first key of an `application/ohttp-keys`."""
        request = {"method": method, "url": url, "headers": headers, "body": body.hex()}
        return bytes.fromhex(self._ask({"keys": keys.hex(), "aead": aead, "request": request})["message"])

    def decapsulate(self, message: bytes) -> Answer:
        """Return the content of the `message/ohttp-res` to the last request."""
        answer = self._ask({"response": message.hex()})
        return Answer(answer["status"], dict(answer["headers"]), bytes.fromhex(answer["body"]))

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        self._questions.write(json.dumps(question) + "\n")
        self._questions.flush()
        answer: dict[str, Any] = json.loads(self._answers.readline())
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer


@contextmanager
def independent_client() -> Iterator[IndependentClient]:
    """Run the client for the block; skip the test where node or its packages are missing."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    if not (HOME / "node_modules" / "@hpke" / "core").is_dir():
        pytest.skip("the client's packages are not installed: npm ci in tests/support/node")
    with subprocess.Popen(
        [node, "client.mjs"], cwd=HOME, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield IndependentClient(process.stdin, process.stdout)
