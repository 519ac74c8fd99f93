"""A report as a JSON value: a statement, with evidence, that a hub, follower or user breaks the terms.

(semantics: terms-and-reports)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from typing import Any, Final, Literal

import attrs

from mimids.errors import Malformed
from mimids.mls.framing import MLSMessage
from mimids.store.reports import StoredReport
from mimids.wire.base64url import base64url, from_base64url
from mimids.wire.codec import WireError
from mimids.wire.declare import decode
from mimids.wire.ids import GroupId, PartitionKey, ProviderId, group_id, provider_id, spelling_fault

EVIDENCE_MESSAGES: Final = 64
NOTE_OCTETS: Final = 4000

_KIND: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
POSSIBLE_KEYS: Final = 512  # in one note; each look-up takes about 10 µs

# At least 32 hex digits, with the separators and prefixes that people and programs use: "8C:5A", "0x8c, 0x5a".
_HEX: Final = re.compile(r"[0-9A-Fa-f](?:0x|\\x|[0-9A-Fa-f]|[\s:;,._-]){31,}")
_BETWEEN_DIGITS: Final = re.compile(r"0x|\\x|[^0-9A-Fa-f]")
_BASE64: Final = re.compile(r"(?<![\w/+-])[\w/+-]{22}(?:==)?(?![\w/+=-])")
_NUMBER: Final = re.compile(r"[0-9]{1,39}")
_NUMBER_OCTETS: Final = (1, 4, 8, 16)  # how many octets of a key one decimal number may stand for ...
_ORDERS: Final[tuple[Literal["big", "little"], ...]] = ("big", "little")  # ... and in which order


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
            raise Malformed(
                'a report must not contain partition keys; remove the JSON members with "partition_key" in their names'
            )
        written_id, evidence, note = members.get("group_id"), members.get("evidence") or [], members.get("note") or ""
        accused, kind = members["accused"], members["kind"]
        if not all(isinstance(each, str) for each in (accused, kind, note, *evidence)) or not _KIND.fullmatch(kind):
            raise ValueError
        if not accused.lower().startswith("mimi:"):
            provider_id(accused)
        elif (misspelt := spelling_fault(accused.encode())) is not None:
            raise Malformed(f"accused: {misspelt}")
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

        If the digest left out the reporter, the accused could file the same report and learn from the answer that
        somebody had filed it.
        """
        return hashlib.sha256(json.dumps([reporter, self.as_json()], sort_keys=True).encode()).digest()


def possible_keys(note: str) -> Iterator[PartitionKey]:
    """Yield what may be a partition key in a note: 16 octets in hex, base64 or decimal numbers, however separated.

    Raises `Malformed` if there are more than POSSIBLE_KEYS.
    """
    found: set[bytes] = set()
    for octets in _octets_in(note):
        # A key is random: less than one in 10^15 has so many zeros. Small numbers of several octets each have them.
        if octets in found or octets.count(0) >= PartitionKey.SIZE // 2:
            continue
        if len(found) == POSSIBLE_KEYS:
            raise Malformed("the note has too many digits to be searched for partition keys; send messages as evidence")
        found.add(octets)
        yield PartitionKey(octets)


def _octets_in(note: str) -> Iterator[bytes]:
    """Yield every 16 octets that a note contains in one of the notations; the same octets may be yielded repeatedly."""
    for written in _BASE64.findall(note):
        with suppress(ValueError):
            yield from_base64url(written.rstrip("=").replace("+", "-").replace("/", "_"))
    for written in _HEX.findall(note):
        digits = _BETWEEN_DIGITS.sub("", written)
        for start in (0, 1):  # the first octet may begin at any digit
            whole = digits[start : start + (len(digits) - start) // 2 * 2]
            yield from _windows(bytes.fromhex(whole), 1)
    numbers = [int(written) for written in _NUMBER.findall(note)]
    for size in _NUMBER_OCTETS:
        for fits, run in groupby(numbers, lambda number, size=size: number < 1 << 8 * size):  # type: ignore[misc]
            if fits:
                some = list(run)
                for order in _ORDERS:
                    yield from _windows(b"".join(number.to_bytes(size, order) for number in some), size)


def _windows(octets: bytes, step: int) -> Iterator[bytes]:
    """Yield each part of the octets that is as long as a key and begins at a multiple of `step`."""
    for start in range(0, len(octets) - PartitionKey.SIZE + 1, step):
        yield octets[start : start + PartitionKey.SIZE]


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
