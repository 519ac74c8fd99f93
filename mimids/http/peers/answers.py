"""What HTTP answers of other providers hold, as the typed answers of `ds.ports`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import attrs

from mimids.ds.ports import PeerAnswer, RelayedAnswer
from mimids.http.header_names import ARRANGEMENT
from mimids.http.media_types import without_parameters
from mimids.ohttp.keys_signature import HEADER as KEYS_SIGNATURE

REVISION_DIGITS: Final = 19

_MAX_AGE: Final = re.compile(r"(?:^|[,\s])max-age=([0-9]{1,9})(?:$|[,\s])")
_UNCACHED: Final = re.compile(r"(?:^|[,\s])(?:no-store|no-cache)(?:$|[,\s=])")


@attrs.frozen
class HttpAnswer:
    """An answer in HTTP's own terms."""

    status: int
    headers: Mapping[str, str]  # lower-case names; the values of a repeated header are joined by ", "
    body: bytes = attrs.field(repr=False)


@attrs.frozen
class DatedAnswer(PeerAnswer):
    """A `PeerAnswer` with the Date header as the peer wrote it, "" without one: `mimids check` compares clocks."""

    date: str = ""


def dated_answer(answer: HttpAnswer) -> DatedAnswer:
    """Return an answer with a status of 2xx."""
    return DatedAnswer(answer.body, answer.headers.get("date", ""))


def relayed_answer(answer: HttpAnswer) -> RelayedAnswer:
    """Return an answer of any status for the OHTTP relay, with only those headers that the relay may use."""
    headers = answer.headers
    return RelayedAnswer(
        status=answer.status,
        media_type=without_parameters(headers.get("content-type", "")),
        body=answer.body,
        retry_after=headers.get("retry-after", ""),
        max_age_seconds=_max_age_seconds(headers),
        keys_signature=headers.get(KEYS_SIGNATURE.lower(), ""),
    )


def terms_revision(headers: Mapping[str, str]) -> int | None:
    """Return the revision of its terms for us that a hub names in an answer (semantics: terms-and-reports)."""
    named = headers.get(ARRANGEMENT, "")
    return int(named) if named.isascii() and named.isdigit() and len(named) < REVISION_DIGITS else None


def _max_age_seconds(headers: Mapping[str, str]) -> int:
    """Return for how long an answer may be cached (RFC 9111 section 5.2.2); 0 if it does not say."""
    control = headers.get("cache-control", "").lower()
    found = _MAX_AGE.search(control)
    return 0 if found is None or _UNCACHED.search(control) else int(found[1])
