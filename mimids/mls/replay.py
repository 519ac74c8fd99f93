"""Follow recorded groups as a Delivery Service does: the pure part of `mimids mls replay`.

Two forms are read. A JSON array of `{cipher_suite, group_info, ratchet_tree, epochs: [{proposals, commit}]}` is what an
observer saw of each group, in order. JSON lines are a story with forks: each line says what it is and, in `expect`
and `next`, what it should turn out to be; `partition_key` names the epoch it was sent in and `next.partition_key` the
one it opens. Fields that are absent are neither needed nor compared. All MLS objects are hex.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import attrs

from mimids.mls.code_points import ContentType, CredentialType, ExtensionType
from mimids.mls.faults import Invalid as FaultError
from mimids.mls.framing import MLS_MESSAGE, MLSMessage, PrivateMessage, PublicMessage
from mimids.mls.group_info import GroupInfo
from mimids.mls.identity import user_id
from mimids.mls.key_package import KeyPackageIn
from mimids.mls.knowledge import (
    Claimed,
    Derived,
    Judgement,
    Knowledge,
    NotKnown,
    begin,
    epoch_of,
    judge,
    next_knowledge,
    state_of,
    with_group_info,
)
from mimids.mls.leaf_node import RATCHET_TREE, LeafNode, extension_data
from mimids.mls.public_group import PublicGroup, Valid, Verdict
from mimids.mls.suites import suite_of
from mimids.mls.verdict import (
    KEY_PACKAGE,
    MALFORMED,
    UNKNOWN_SUITE,
    WELCOME_EMPTY,
    WRONG_GROUP,
    Invalid,
    Missing,
    RuleError,
    Unknown,
    broken,
)
from mimids.mls.welcome import Welcome
from mimids.wire.codec import WireError

Line = Mapping[str, Any]

# What `expect` demands. Verdicts of room policy and of secrets belong to others: here such lines pass. Of `policy` and
# `recommended_reject` a recording leaves the choice to the server; ours is in docs/mls.md.
_PASSES: Final = frozenset({"accept", "undetectable", "accept_upload", "reject_policy", "reject_policy_local_only"})
_REFUSED: Final = frozenset({"reject"})

_ANY_LIFETIME: Final = 1 << 64


@attrs.frozen
class Record:
    """What became of one message; `differs` says where that is not what the recording has."""

    name: str
    kind: str
    verdict: Verdict
    epoch: int | None
    knowledge: Knowledge | None = None
    differs: tuple[str, ...] = ()
    judged_by_expect: bool = False

    @property
    def failed(self) -> bool:
        """Tell whether the replay as a whole fails by this: refused, or where `expect` says what is due, different."""
        return bool(self.differs) or (not self.judged_by_expect and isinstance(self.verdict, Invalid))

    def as_json(self) -> dict[str, Any]:
        """Return the line that is printed; a state that is not known has neither tree hash nor members."""
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


def replay(text: str, *, now_s: int) -> Iterator[Record]:
    """Yield one record for each message of a recording; raise `ValueError` if the text is neither form.

    `now_s`, in seconds since 1970, is for the lifetimes of KeyPackages that come on their own: only there they count.
    """
    whole = _parsed(text)
    if whole is None:
        lines = [_object(_parsed(line), number) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        yield from _Story(lines, now_s).records()
        return
    recordings = whole if isinstance(whole, list) else [whole]
    if recordings and all(isinstance(each, dict) and "epochs" in each for each in recordings):
        for number, each in enumerate(recordings):
            yield from _observed(each, number)
        return
    yield from _Story([_object(each, number) for number, each in enumerate(recordings, 1)], now_s).records()


def members(group: PublicGroup) -> list[dict[str, Any]]:
    """Return every member as its leaf index and identity."""
    return [{"leaf": index, "identity": _identity(leaf)} for index, leaf in group.members()]


def _observed(recording: Line, number: int) -> Iterator[Record]:
    """Follow one group; stops where nothing more can follow."""
    try:
        tree = recording.get("ratchet_tree")
        info = _group_info(_message(recording["group_info"]))
        suite = suite_of(info.group_context.cipher_suite)
        if suite is None:
            broken(UNKNOWN_SUITE)
        octets = None if tree is None else _octets(tree)
        knowledge = begin(info, octets, group_id=info.group_context.group_id, suite=suite)
    except RuleError as error:
        yield Record(f"{number}.group_info", "group_info", error.invalid, None)
        return
    yield Record(f"{number}.group_info", "group_info", Valid(), epoch_of(knowledge), knowledge)
    for step, epoch in enumerate(recording["epochs"]):
        sent = [("proposal", each) for each in epoch.get("proposals", ())]
        if epoch.get("commit") is not None:
            sent.append(("commit", epoch["commit"]))
        for place, (kind, octets_hex) in enumerate(sent):
            try:
                judgement, message, following = _sent(knowledge, octets_hex, None)
            except RuleError as error:
                judgement, message, following = Judgement(error.invalid, knowledge), None, knowledge
            knowledge = following
            at = None if message is None else message.epoch
            yield Record(f"{number}.{step}.{kind}.{place}", kind, judgement.verdict, at, knowledge)


class _Story:
    """JSON lines, with what is known of every partition named so far."""

    def __init__(self, lines: list[Line], now_s: int) -> None:
        self._lines = lines
        self._now_s = now_s
        self._partitions: dict[str, Knowledge] = {}
        self._groups: set[bytes] = set()
        self._suites: set[int] = set()
        # Where a GroupInfo has no tree, the story may hold it on a line of its own.
        self._trees = {_place(line): line["bytes"] for line in lines if line.get("kind") == "ratchet_tree"}

    def records(self) -> Iterator[Record]:
        for number, line in enumerate(self._lines, 1):
            if "bytes" in line:
                yield self._record(line, str(line.get("name", number)), str(line.get("kind", "message")))
            elif line.get("kind") == "group_created":
                self._create(line)

    def _create(self, line: Line) -> None:
        """Note the group's first partition; what its GroupInfo says on a later line counts as the creation's."""
        suite = suite_of(line.get("ciphersuite", 0))
        key, group_id = _partition_key(line), line.get("group_id")
        if key is not None and isinstance(group_id, str) and suite is not None:
            self._partitions[key] = NotKnown(line.get("epoch", 0), _octets(group_id), suite)

    def _record(self, line: Line, name: str, kind: str) -> Record:
        epoch: int | None = None
        found: Knowledge | None = None
        verdict: Verdict
        differs: list[str] = []
        try:
            if kind == "ratchet_tree":
                _decoded_tree(line["bytes"])
                return Record(name, kind, Valid(), line.get("epoch"), judged_by_expect=True)
            message = _message(line["bytes"])
            epoch = message.epoch
            if isinstance(message.message, PublicMessage | PrivateMessage):
                verdict, found, differs = self._handshake_or_data(line, message)
            elif isinstance(message.message, GroupInfo):
                found = self._learn(line, message.message)
                verdict, differs = Valid(), _state_differences(found, line)
            elif isinstance(message.message, KeyPackageIn):
                verdict = self._key_package(message.message)
                differs = _reference_differences(line, "key_package_ref", _key_package_ref(message.message))
            else:
                _check_welcome(message.message)
                verdict = Valid()
        except RuleError as error:
            verdict = error.invalid
        expect = line.get("expect", "accept")
        if expect in _PASSES and isinstance(verdict, Invalid):
            differs.append(f"refused, but {expect} was expected")
        if expect in _REFUSED and not isinstance(verdict, Invalid):
            differs.append(f"not refused, but {expect} was expected")
        return Record(name, kind, verdict, epoch, found, tuple(differs), judged_by_expect=True)

    def _handshake_or_data(self, line: Line, message: MLSMessage) -> tuple[Verdict, Knowledge, list[str]]:
        key = _partition_key(line)
        before = self._partitions.get(key, NotKnown()) if key is not None else self._by_epoch(message)
        if message.group_id not in self._groups and not isinstance(before, Derived | Claimed) and self._groups:
            broken(WRONG_GROUP)
        judgement = judge(before, message)
        if key is not None:
            self._partitions[key] = judgement.knowledge
        verdict = judgement.verdict
        if isinstance(verdict, Invalid):
            return verdict, judgement.knowledge, []
        ref = verdict.ref if isinstance(verdict, Valid) else None
        differs = _reference_differences(line, "proposal_ref", ref)
        if message.content_type is not ContentType.COMMIT:
            return verdict, judgement.knowledge, differs
        sent_along = line.get("group_info")
        info = None if sent_along is None else _group_info(_message(sent_along))
        following = next_knowledge(judgement, message, info)
        expected = line.get("next")
        if isinstance(expected, dict):
            opens = _partition_key(expected)
            if opens is not None:
                self._partitions[opens] = following
            differs += _state_differences(following, expected)
        return verdict, following, differs

    def _by_epoch(self, message: MLSMessage) -> Knowledge:
        """Return the youngest partition of the message's group and epoch, for lines that name none."""
        for knowledge in reversed(self._partitions.values()):
            group = state_of(knowledge)
            group_id = group.group_id if group is not None else getattr(knowledge, "group_id", None)
            if group_id == message.group_id and epoch_of(knowledge) == message.epoch:
                return knowledge
        return NotKnown()

    def _learn(self, line: Line, info: GroupInfo) -> Knowledge:
        context = info.group_context
        suite = suite_of(context.cipher_suite)
        if suite is None:
            broken(UNKNOWN_SUITE)
        key = _partition_key(line) or f"epoch {context.epoch}"
        known = self._partitions.get(key)
        tree_hex = line.get("ratchet_tree")
        if tree_hex is None and extension_data(info.extensions, ExtensionType.RATCHET_TREE) is None:
            tree_hex = self._trees.get(_place(line))
        tree = None if tree_hex is None else _octets(tree_hex)
        first = context.group_id not in self._groups
        if first:
            knowledge = begin(info, tree, group_id=context.group_id, suite=suite)
        else:
            knowledge = with_group_info(NotKnown() if known is None else known, info, tree)
        self._groups.add(context.group_id)
        self._suites.add(suite.code)
        self._partitions[key] = knowledge
        return knowledge

    def _key_package(self, package: KeyPackageIn) -> Verdict:
        """Judge a KeyPackage as on upload (DESIGN section 6.1), unless it is of a suite that no group here has."""
        if self._suites and package.cipher_suite not in self._suites:
            return Unknown((Missing("group of cipher suite", str(package.cipher_suite)),))
        try:
            package.validate(self._now_s, max_lifetime_s=_ANY_LIFETIME)
        except FaultError as error:
            return Invalid(KEY_PACKAGE, error.fault.section, error.fault.rule)
        return Valid()


def _sent(knowledge: Knowledge, octets_hex: str, info: GroupInfo | None) -> tuple[Judgement, MLSMessage, Knowledge]:
    message = _message(octets_hex)
    if not isinstance(message.message, PublicMessage | PrivateMessage):
        broken(MALFORMED, "only PublicMessages and PrivateMessages are sent to a group")
    judgement = judge(knowledge, message)
    if isinstance(judgement.verdict, Invalid) or message.content_type is not ContentType.COMMIT:
        return judgement, message, judgement.knowledge
    return judgement, message, next_knowledge(judgement, message, info)


def _state_differences(knowledge: Knowledge, expected: Line) -> list[str]:
    """Compare what is known of a state with what a recording says of it."""
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
        f"{field} is not the recorded one"
        for field, value in found.items()
        if field in expected and value is not None and expected[field] != value
    ]


def _reference_differences(line: Line, field: str, ref: bytes | None) -> list[str]:
    return [f"{field} is not the recorded one"] if ref is not None and line.get(field, ref.hex()) != ref.hex() else []


def _key_package_ref(package: KeyPackageIn) -> bytes | None:
    suite = suite_of(package.cipher_suite)
    return None if suite is None else package.ref(suite)


def _check_welcome(welcome: Welcome) -> None:
    if suite_of(welcome.cipher_suite) is None:
        broken(UNKNOWN_SUITE)
    if not welcome.secrets:
        broken(WELCOME_EMPTY)


def _state_name(knowledge: Knowledge) -> str:
    return {Derived: "derived", Claimed: "claimed"}.get(type(knowledge), "unknown")


def _identity(leaf: LeafNode) -> str:
    content = leaf.credential.content
    if leaf.credential.credential_type is CredentialType.BASIC and isinstance(content, bytes):
        try:
            return content.decode()
        except UnicodeDecodeError:
            return content.hex()
    user = user_id(leaf.credential)
    return leaf.signature_key.hex() if user is None else user.decode()


def _partition_key(line: Line) -> str | None:
    key = line.get("partition_key")
    return key if isinstance(key, str) else None


def _place(line: Line) -> tuple[object, ...]:
    return line.get("group_id"), line.get("branch"), line.get("epoch")


def _octets(text: object) -> bytes:
    try:
        return bytes.fromhex(text) if isinstance(text, str) else broken(MALFORMED, "no hex")
    except ValueError:
        broken(MALFORMED, "no hex")


def _message(text: object) -> MLSMessage:
    try:
        return MLS_MESSAGE.decode(_octets(text))
    except WireError as error:
        broken(MALFORMED, str(error))


def _decoded_tree(text: object) -> None:
    try:
        RATCHET_TREE.decode(_octets(text))
    except WireError as error:
        broken(MALFORMED, str(error))


def _group_info(message: MLSMessage) -> GroupInfo:
    if not isinstance(message.message, GroupInfo):
        broken(MALFORMED, "a GroupInfo is wanted here")
    return message.message


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _object(value: Any, number: int) -> Line:
    if not isinstance(value, dict):
        raise ValueError(f"{number}: not a JSON object")
    return value
