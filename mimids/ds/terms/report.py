"""A report as a JSON value: a statement, with evidence, that a hub, follower or user breaks the terms.

(semantics: terms-and-reports)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, Final

import attrs

from mimids.errors import Malformed
from mimids.mls.framing import MLSMessage
from mimids.mls.identity import provider_of
from mimids.store.reports import StoredReport
from mimids.wire.base64url import base64url, from_base64url
from mimids.wire.codec import WireError
from mimids.wire.declare import decode
from mimids.wire.ids import GroupId, PartitionKey, ProviderId, group_id, provider_id

EVIDENCE_MESSAGES: Final = 64
NOTE_OCTETS: Final = 4000

_KIND: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
POSSIBLE_KEYS: Final = 4096  # how many are checked in one note

# At least 32 hex digits, with the separators and prefixes that people and programs use: "8C:5A", "0x8c, 0x5a".
_HEX: Final = re.compile(r"[0-9A-Fa-f](?:0x|\\x|[0-9A-Fa-f]|[\s:;,._-]){31,}")
_BETWEEN_DIGITS: Final = re.compile(r"0x|\\x|[^0-9A-Fa-f]")
_BASE64: Final = re.compile(r"(?<![\w/+-])[\w/+-]{22}(?:==)?(?![\w/+=-])")
_NUMBER: Final = re.compile(r"[0-9]{1,39}")
# How a key may be written in decimal, as (count, octets of each): 16 octets, 4 numbers of 32 bits, 2 of 64, 1 of 128.
_SPLITS: Final = ((16, 1), (4, 4), (2, 8), (1, 16))


@attrs.frozen
class Report:
    """What a report says. The reporter is not part of it."""

    hub: ProviderId
    group_id: GroupId | None
    accused: str  # a provider's domain, or a user id
    kind: str
    note: str
    evidence: tuple[bytes, ...]  # MLSMessages

    @classmethod
    def read(cls, members: dict[str, Any]) -> Report:
        """Read the JSON members; unknown ones are ignored, unless they may hold a partition key.

        Raises `ValueError`, `KeyError`, `TypeError`, or `Malformed` with what to change.
        """
        if any("partition_key" in name for name in members):
            raise Malformed("a report must not contain partition keys; remove the member")
        written_id, evidence, note = members.get("group_id"), members.get("evidence") or [], members.get("note") or ""
        accused, kind = members["accused"], members["kind"]
        if not all(isinstance(each, str) for each in (accused, kind, note, *evidence)) or not _KIND.fullmatch(kind):
            raise ValueError
        if provider_of(accused.encode()) is None:
            provider_id(accused)
        if len(note.encode()) > NOTE_OCTETS or len(evidence) > EVIDENCE_MESSAGES:
            raise Malformed(f"a report has at most {NOTE_OCTETS} octets of note and {EVIDENCE_MESSAGES} messages")
        return cls(
            provider_id(members["hub"]),
            None if written_id is None else group_id(from_base64url(written_id)),
            accused,
            kind,
            note,
            tuple(_checked_message(from_base64url(each)) for each in evidence),
        )

    def as_json(self) -> dict[str, Any]:
        """Return the JSON members."""
        return {
            "hub": self.hub,
            "group_id": None if self.group_id is None else base64url(self.group_id),
            "accused": self.accused,
            "kind": self.kind,
            "note": self.note,
            "evidence": [base64url(each) for each in self.evidence],
        }

    def digest(self, reporter: str) -> bytes:
        """Return the SHA-256 of the members and the reporter: reports with the same digest are one report.

        If the digest left out the reporter, the accused could file the same report and learn from the answer that it
        exists.
        """
        return hashlib.sha256(json.dumps([reporter, self.as_json()], sort_keys=True).encode()).digest()


def possible_keys(note: str) -> Iterator[PartitionKey]:
    """Yield what may be a partition key in a note: 16 octets in hex, base64 or decimal numbers, however separated."""
    found = (octets for octets in _octets_in(note) if len(octets) == PartitionKey.SIZE)
    yield from map(PartitionKey, islice(dict.fromkeys(found), POSSIBLE_KEYS))


def _octets_in(note: str) -> Iterator[bytes]:
    for written in _BASE64.findall(note):
        with suppress(ValueError):
            yield from_base64url(written.rstrip("=").replace("+", "-").replace("/", "_"))
    for written in _HEX.findall(note):
        digits = _BETWEEN_DIGITS.sub("", written)
        for start in range(len(digits) - 2 * PartitionKey.SIZE + 1):
            yield bytes.fromhex(digits[start : start + 2 * PartitionKey.SIZE])
    numbers = [int(written) for written in _NUMBER.findall(note)]
    for count, octets in _SPLITS:
        for start in range(len(numbers) - count + 1):
            some = numbers[start : start + count]
            if all(number < 1 << 8 * octets for number in some):
                yield b"".join(number.to_bytes(octets, "big") for number in some)
                yield b"".join(number.to_bytes(octets, "little") for number in some)


def without_reporter(report: StoredReport) -> Report:
    """Return a stored report for another provider, with the reporter's name removed from the note."""
    note, user = report.note, report.reporter_user
    if user is not None:
        user_id = user.decode("utf-8", "replace")
        names = "|".join(map(re.escape, (user_id, user_id.rpartition("/")[2])))
        note = re.sub(rf"(?<!\w)(?:{names})(?!\w)", "[removed]", note)
    elif report.by_device:
        note = ""  # the reporter's account is deleted, so the name to remove is not known
    return Report(report.hub, report.group_id, report.accused, report.kind, note, report.evidence)


def _checked_message(octets: bytes) -> bytes:
    """Check that evidence is exactly one MLSMessage: a SendRequest would contain its partition key."""
    try:
        decode(MLSMessage, octets)
    except WireError as error:
        raise Malformed("each piece of evidence must be one MLSMessage, sent without partition keys") from error
    return octets
