"""Parse the hex fields of recordings, and describe the result for each message as a `Record`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from mimids.mls.code_points import CredentialType
from mimids.mls.framing import MLS_MESSAGE, MLSMessage
from mimids.mls.group_info import GroupInfo
from mimids.mls.identity import user_of
from mimids.mls.knowledge import Claimed, Derived, Knowledge, epoch_of, state_of
from mimids.mls.leaf_node import LeafNode
from mimids.mls.public_group import PublicGroup, Verdict
from mimids.mls.rules.verdict import MALFORMED, Invalid, Unknown, reject
from mimids.wire.codec import WireError

Line = Mapping[str, Any]


@attrs.frozen
class Record:
    """The result for one message; `differs` lists where it differs from the recording."""

    name: str
    kind: str
    verdict: Verdict
    epoch: int | None
    knowledge: Knowledge | None = None
    differs: tuple[str, ...] = ()
    judged_by_expect: bool = False

    @property
    def failed(self) -> bool:
        """Tell whether the replay fails: on a difference, or on a refusal in a recording that has no `expect`."""
        return bool(self.differs) or (not self.judged_by_expect and isinstance(self.verdict, Invalid))

    def as_json(self) -> dict[str, Any]:
        """Return the printed line as a dict; tree hash and members are None if the state is unknown."""
        verdict, reason, rule = "valid", None, None
        if isinstance(self.verdict, Invalid):
            verdict, reason, rule = "invalid", str(self.verdict), self.verdict.rule.name
        elif isinstance(self.verdict, Unknown):
            verdict, reason = "unknown", ", ".join(map(str, self.verdict.missing))
        group = None if self.knowledge is None else state_of(self.knowledge)
        return {
            "name": self.name,
            "kind": self.kind,
            "verdict": verdict,
            "rule": rule,
            "reason": reason,
            "epoch": self.epoch,
            "state": None if self.knowledge is None else _state_name(self.knowledge),
            "state_epoch": None if self.knowledge is None else epoch_of(self.knowledge),
            "tree_hash": None if group is None else group.tree_hash.hex(),
            "members": None if group is None else members(group),
            "differs": list(self.differs),
        }


def members(group: PublicGroup) -> list[dict[str, Any]]:
    """Return the leaf index and identity of each member."""
    return [{"leaf": index, "identity": _identity(leaf)} for index, leaf in group.members()]


def state_differences(knowledge: Knowledge, expected: Line) -> list[str]:
    """Compare a state, as far as it is known, with the recorded state; return the differences."""
    found: dict[str, object] = {"epoch": epoch_of(knowledge)}
    group = state_of(knowledge)
    if group is not None:
        found["tree_hash"] = group.tree_hash.hex()
        found["confirmed_transcript_hash"] = group.context.confirmed_transcript_hash.hex()
        found["confirmation_tag"] = group.confirmation_tag.hex()
        found["members"] = members(group)
        if isinstance(expected.get("members"), int):
            found["members"] = group.tree.member_count
    return [
        f"{field} differs from the recording"
        for field, value in found.items()
        if field in expected and value is not None and expected[field] != value
    ]


def parse_hex(text: object) -> bytes:
    """Return the octets in a hex field; raise `RuleError`."""
    try:
        return bytes.fromhex(text) if isinstance(text, str) else reject(MALFORMED, "the field does not hold hex")
    except ValueError:
        reject(MALFORMED, "the field does not hold hex")


def parse_message(text: object) -> MLSMessage:
    """Return the MLSMessage in a hex field; raise `RuleError`."""
    try:
        return MLS_MESSAGE.decode(parse_hex(text))
    except WireError as error:
        reject(MALFORMED, str(error))


def parse_group_info(text: object) -> GroupInfo:
    """Return the GroupInfo in a hex field, which holds it as an MLSMessage; raise `RuleError`."""
    found = parse_message(text).message
    if not isinstance(found, GroupInfo):
        reject(MALFORMED, "the field must hold a GroupInfo")
    return found


def _state_name(knowledge: Knowledge) -> str:
    return {Derived: "derived", Claimed: "claimed"}.get(type(knowledge), "unknown")


def _identity(leaf: LeafNode) -> str:
    content = leaf.credential.content
    if leaf.credential.credential_type is CredentialType.BASIC and isinstance(content, bytes):
        try:
            return content.decode()
        except UnicodeDecodeError:
            return content.hex()
    user = user_of(leaf.credential)
    return leaf.signature_key.hex() if user is None else user.decode()
