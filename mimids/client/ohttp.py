"""KeyPackages of others, fetched so that one's own provider does not learn whose (semantics: ohttp, RFC 9458).

The request is sealed to the other provider's gateway and passed on by one's own. Nothing here waits or opens anything;
`device.py` carries the octets.
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
    """The gateway says our clock is off; `seconds` is the time by its own, if it says (RFC 9458 section 6.5.2)."""

    def __init__(self, seconds: int | None) -> None:
        super().__init__("the gateway does not take our Date")
        self.seconds = seconds


@attrs.frozen
class SealedRequest:
    """A `message/ohttp-req`, and what opens its answer."""

    message: bytes
    _opener: Opener

    def open(self, answer: bytes) -> tuple[KeyPackageResult, ...]:
        """Return one result for each request, in order.

        Raises `WrongDate`, `Problem` for other refusals of the gateway, `HpkeError` or `WireError` for what is no
        answer of its.
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
    now_seconds: int,
    ephemeral: bytes,
) -> SealedRequest:
    """Seal requests that are to be answered in one transaction; `ephemeral` is 32 random octets, used this once."""
    content = encode(KeyPackageBundleRequest(tuple(requests)))
    fields = ((b"content-type", MIMI_DS.encode()), (b"date", write_date(now_seconds)))
    request = bhttp.Request("POST", "https", provider, PATH, fields, content)
    sealed = encapsulate(config, pad_request(bhttp.encode_request(request)), ephemeral)
    return SealedRequest(sealed.message, sealed.opener)
