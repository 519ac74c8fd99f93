"""A report as a JSON value: a statement, with evidence, that a hub, follower or user breaks the terms.

(semantics: terms-and-reports)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any, Final

import attrs

from mimids.errors import Malformed
from mimids.mls.framing import MLSMessage
from mimids.mls.identity import provider_of
from mimids.store.reports import StoredReport
from mimids.wire.base64url import base64url, from_base64url
from mimids.wire.codec import WireError
from mimids.wire.declare import decode
from mimids.wire.ids import GroupId, PartitionKey, ProviderId, provider_id

EVIDENCE_MESSAGES: Final = 64
NOTE_OCTETS: Final = 4000

_KIND: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
# 16 octets in hex (32 digits) or in base64url (22 characters, perhaps padded)
_POSSIBLE_KEYS: Final = re.compile(
    r"(?<![0-9A-Fa-f])[0-9A-Fa-f]{32}(?![0-9A-Fa-f])|(?<![\w-])[\w-]{22}(?:==)?(?![\w=-])"
)


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
        group_id, evidence, note = members.get("group_id"), members.get("evidence") or [], members.get("note") or ""
        accused, kind = members["accused"], members["kind"]
        if not all(isinstance(each, str) for each in (accused, kind, note, *evidence)) or not _KIND.fullmatch(kind):
            raise ValueError
        if provider_of(accused.encode()) is None:
            provider_id(accused)
        if len(note.encode()) > NOTE_OCTETS or len(evidence) > EVIDENCE_MESSAGES:
            raise Malformed(f"a report has at most {NOTE_OCTETS} octets of note and {EVIDENCE_MESSAGES} messages")
        return cls(
            provider_id(members["hub"]),
            None if group_id is None else GroupId(from_base64url(group_id)),
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

    def digest(self) -> bytes:
        """Return the SHA-256 of the members: reports with the same digest are one report."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).digest()


def possible_keys(note: str) -> Iterator[PartitionKey]:
    """Yield each 16 octets in a note, in hex or base64url, that may be a partition key."""
    for found in _POSSIBLE_KEYS.findall(note):
        try:
            octets = bytes.fromhex(found) if len(found) == 32 else from_base64url(found.rstrip("="))
        except ValueError:
            continue
        if len(octets) == PartitionKey.SIZE:
            yield PartitionKey(octets)


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
