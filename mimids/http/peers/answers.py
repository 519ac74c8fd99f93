"""Conversion of other providers' HTTP answers to the typed answers of `ds.ports`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import attrs

from mimids.ds.ports import PeerAnswer, RelayedAnswer
from mimids.http.header_names import ARRANGEMENT, LINEAR
from mimids.http.media_types import without_parameters
from mimids.ohttp.keys_signature import HEADER as KEYS_SIGNATURE

REVISION_DIGITS: Final = 19
HEADER_CHARS: Final = 1024  # of a header that we pass on to a client

_MAX_AGE: Final = re.compile(r"(?:^|[,\s])max-age=([0-9]{1,9})(?:$|[,\s])")
_UNCACHED: Final = re.compile(r"(?:^|[,\s])(?:no-store|no-cache)(?:$|[,\s=])")


@attrs.frozen
class HttpAnswer:
    """An answer with the status, headers and body of HTTP."""

    status: int
    headers: Mapping[str, str]  # lower-case names; the values of a repeated header are joined by ", "
    body: bytes = attrs.field(repr=False)


@attrs.frozen
class DatedAnswer(PeerAnswer):
    """A `PeerAnswer` with the peer's Date header, by which `mimids check` compares clocks; "" if there is none."""

    date: str = ""


def dated_answer(answer: HttpAnswer) -> DatedAnswer:
    """Return an answer with a status of 2xx as a `DatedAnswer`."""
    linear = answer.headers.get(LINEAR) == "?1"
    return DatedAnswer(answer.body, linear, answer.headers.get("date", ""))


def relayed_answer(answer: HttpAnswer) -> RelayedAnswer:
    """Return an answer of any status for the OHTTP relay, with only those headers that the relay may use."""
    headers = answer.headers
    return RelayedAnswer(
        status=answer.status,
        media_type=without_parameters(_plain(headers, "content-type")),
        body=answer.body,
        retry_after=_plain(headers, "retry-after"),
        max_age_seconds=_max_age_seconds(headers),
        keys_signature=_plain(headers, KEYS_SIGNATURE.lower()),
    )


def _plain(headers: Mapping[str, str], name: str) -> str:
    """Return a header that may be passed on; "" if it is too long or has octets other than printable ASCII."""
    value = headers.get(name, "")
    return value if len(value) <= HEADER_CHARS and value.isascii() and value.isprintable() else ""


def named_revision(headers: Mapping[str, str]) -> int | None:
    """Return the revision of a hub's terms for us that the answer names (semantics: terms-and-reports)."""
    named = headers.get(ARRANGEMENT, "")
    return int(named) if named.isascii() and named.isdigit() and len(named) < REVISION_DIGITS else None


def _max_age_seconds(headers: Mapping[str, str]) -> int:
    """Return for how long an answer may be cached (RFC 9111 section 5.2.2); 0 if the answer does not say."""
    control = headers.get("cache-control", "").lower()
    found = _MAX_AGE.search(control)
    return 0 if found is None or _UNCACHED.search(control) else int(found[1])
