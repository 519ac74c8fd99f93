"""Sealed requests, so that the device's provider does not learn whose KeyPackages are fetched (semantics: ohttp).

A request is sealed for the gateway of the other provider, and relayed by the device's provider. Nothing here does any
I/O; `key_packages.py` sends the requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

from mimids.client.connection import MIMI_DS, Problem
from mimids.ohttp import bhttp
from mimids.ohttp.client import Opener, encapsulate
from mimids.ohttp.config import KeyConfig
from mimids.ohttp.date import read_date, write_date
from mimids.ohttp.padding import pad_request
from mimids.wire.declare import decode, encode
from mimids.wire.ids import ProviderId
from mimids.wire.messages import (
    KeyPackageBundleRequest,
    KeyPackageBundleResponse,
    KeyPackageRequest,
    KeyPackageResult,
)

PATH: Final = "/key-packages?bundle"


class WrongDate(Exception):
    """The gateway says that our clock is wrong.

    `seconds` is the gateway's time, if the answer has it (RFC 9458 section 6.5.2).
    """

    def __init__(self, seconds: int | None) -> None:
        super().__init__("the gateway refuses our Date: the clock of this machine is wrong")
        self.seconds = seconds


@attrs.frozen
class SealedRequest:
    """A `message/ohttp-req`, and the context that opens its answer."""

    message: bytes
    _opener: Opener

    def open(self, answer: bytes) -> tuple[KeyPackageResult, ...]:
        """Return one result for each request, in order.

        Raise `WrongDate`, `Problem` for other refusals of the gateway, and `HpkeError` or `WireError` if the bytes are
        not an answer of the gateway.
        """
        response = bhttp.decode_response(self._opener.open(answer))
        if response.status == 200:
            return decode(KeyPackageBundleResponse, response.content).results
        problem = Problem.from_json(response.status, response.content)
        if problem.code == "date":
            raise WrongDate(read_date(response.field(b"date")))
        raise problem


def seal(
    config: KeyConfig,
    provider: ProviderId,
    requests: Sequence[KeyPackageRequest],
    *,
    date_seconds: int,
    ephemeral: bytes,
) -> SealedRequest:
    """Seal requests, to be answered in one transaction; `ephemeral` is 32 random octets that are used only once.

    `date_seconds` is the Date of the request: a blurred time, so that it does not identify the client.
    """
    content = encode(KeyPackageBundleRequest(tuple(requests)))
    fields = ((b"content-type", MIMI_DS.encode()), (b"date", write_date(date_seconds)))
    request = bhttp.Request("POST", "https", provider, PATH, fields, content)
    sealed = encapsulate(config, pad_request(bhttp.encode_request(request)), ephemeral)
    return SealedRequest(sealed.message, sealed.opener)
