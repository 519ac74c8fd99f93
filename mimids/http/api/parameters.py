"""Parts of a request besides its body, as typed values: from the path, the query and the headers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from mimids.errors import Malformed, NotFound
from mimids.wire import base64url
from mimids.wire.ids import GroupId, MaskedPartitionKey, ProviderId, group_id, provider_id

MASKED_KEY_CHARS: Final = 88  # 64 octets in base64url, padded
NUMBER_DIGITS: Final = 18  # fits a signed 64-bit integer, which a row can hold

PREFERENCES: Final = 16  # the server parses no more than this many of one request

_WAIT: Final = re.compile(r"""wait[ \t]*=[ \t]*("?)([0-9]{1,9})\1""")


def provider_in(path: Mapping[str, str]) -> ProviderId:
    """Return the provider that `{provider}` names; raise `NotFound` if it is not a provider's name."""
    try:
        return provider_id(path["provider"])
    except ValueError:
        raise NotFound("the path names no provider: write a domain in lower case, such as b.example") from None


def group_id_in(path: Mapping[str, str]) -> GroupId:
    """Return the group id that `{group_id}` holds in base64url; raise `Malformed` for other text."""
    try:
        return group_id(_from_base64url(path["group_id"]))
    except ValueError as error:
        raise Malformed(str(error)) from error


def number_in(path: Mapping[str, str], name: str) -> int:
    """Return a number in the path; raise `NotFound` for anything else, because every id is a number."""
    text = path[name]
    if not (text.isascii() and text.isdigit() and len(text) <= NUMBER_DIGITS):
        raise NotFound
    return int(text)


def partition_in(query: Mapping[str, str]) -> MaskedPartitionKey | None:
    """Return the partition that `?partition=` names in base64url; raise `Malformed` for other text."""
    text = query.get("partition")
    if text is None:
        return None
    octets = _from_base64url(text) if len(text) <= MASKED_KEY_CHARS else b""
    if len(octets) not in (32, 48, 64):
        raise Malformed("partition: write a masked partition key in base64url")
    return MaskedPartitionKey(octets)


def wait_seconds(headers: Mapping[str, str], at_most: int) -> int | None:
    """Return how long `Prefer: wait=N` (RFC 7240 section 4.3) allows us to wait; None without that header."""
    for preference in headers.get("prefer", "").lower().split(",", PREFERENCES)[:PREFERENCES]:
        found = _WAIT.fullmatch(preference.partition(";")[0].strip())  # the pattern reads no part of the text twice
        if found:
            return min(int(found[2]), at_most)
    return None


def _from_base64url(text: str) -> bytes:
    try:
        return base64url.from_base64url(text)
    except ValueError as error:
        raise Malformed("the group id or partition in the URL must be base64url (RFC 4648 section 5)") from error
