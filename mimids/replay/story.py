"""Replay a story, a recording of groups and forks in JSON lines, and compare the results with the expected results.

A line has an MLSMessage in `bytes`. `partition_key` names the partition in which the message was sent;
`next.partition_key` names the partition that a commit opens. In a story without keys, several partitions may have the
message's epoch; the message belongs to the partition in whose state it was signed. `expect` is the expected verdict;
`next` and `state` describe the expected result. Absent fields are not compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mimids.mls.code_points import ContentType, ExtensionType
from mimids.mls.faults import FaultError
from mimids.mls.framing import MLSMessage, PrivateMessage, PublicMessage
from mimids.mls.group_info import GroupContext, GroupInfo
from mimids.mls.key_package import KeyPackageIn
from mimids.mls.knowledge import (
    Claimed,
    Derived,
    Knowledge,
    NotKnown,
    begin,
    epoch_of,
    judge,
    next_knowledge,
    state_of,
    with_group_info,
)
from mimids.mls.leaf_node import RATCHET_TREE, extension_data
from mimids.mls.public_group import Valid, Verdict
from mimids.mls.rules.checks import signature_fits
from mimids.mls.rules.verdict import (
    KEY_PACKAGE,
    MALFORMED,
    UNKNOWN_SUITE,
    WELCOME_EMPTY,
    WRONG_GROUP,
    Invalid,
    Missing,
    RuleError,
    Unknown,
    reject,
)
from mimids.mls.suites import suite_of
from mimids.mls.welcome import Welcome
from mimids.replay.recordings import Line, Record, parse_group_info, parse_hex, parse_message, state_differences
from mimids.wire.codec import WireError

# Values of `expect`. Refusals by room policy, and refusals that need secrets, are not found here: such lines must pass.
# `policy` and `recommended_reject` leave the choice to the server; docs/mls.md says what this server does.
_PASSES: Final = frozenset({"accept", "undetectable", "accept_upload", "reject_policy", "reject_policy_local_only"})
_REFUSED: Final = frozenset({"reject"})

_ANY_LIFETIME_S: Final = 1 << 64


class Story:
    """The lines of a story, and the known state of each partition so far."""

    def __init__(self, lines: list[Line], now_s: int) -> None:
        self._lines = lines
        self._now_s = now_s
        self._partitions: dict[str, Knowledge] = {}
        self._created: set[str] = set()  # first partitions of groups
        self._groups: dict[bytes, bool] = {}  # group ids that occurred, and whether a GroupInfo of the group occurred
        self._suites: set[int] = set()
        # The story may have a GroupInfo's tree on a line of its own.
        self._trees = {_tree_place(line): line.get("bytes") for line in lines if line.get("kind") == "ratchet_tree"}

    def records(self) -> Iterator[Record]:
        """Yield a record for each line with a message."""
        for number, line in enumerate(self._lines, 1):
            if "bytes" in line:
                yield self._replay_line(line, str(line.get("name", number)), str(line.get("kind", "message")))
            elif line.get("kind") == "group_created":
                self._begin_group(line)

    def _begin_group(self, line: Line) -> None:
        """Store a group's first partition. A later line with its GroupInfo is replayed as the group's creation."""
        state = line.get("state")
        key = _partition_key(line) or (_partition_key(state) if isinstance(state, dict) else None)
        suite = suite_of(line.get("ciphersuite", 0))
        group_id = line.get("group_id")
        if not isinstance(group_id, str) or suite is None:
            return
        known = NotKnown(line.get("epoch", 0), parse_hex(group_id), suite)
        key = key or _named_by_epoch(known)
        self._partitions[key] = known
        self._created.add(key)
        self._groups.setdefault(parse_hex(group_id), False)

    def _replay_line(self, line: Line, name: str, kind: str) -> Record:
        epoch: int | None = None
        found: Knowledge | None = None
        verdict: Verdict = Valid()
        differs: list[str] = []
        try:
            if kind == "ratchet_tree":
                _check_tree_parses(line["bytes"])
                return Record(name, kind, verdict, line.get("epoch"), judged_by_expect=True)
            carried = parse_message(line["bytes"])
            epoch = carried.epoch
            if isinstance(carried.message, PublicMessage | PrivateMessage):
                verdict, found, differs = self._judge_message(line, carried)
            elif isinstance(carried.message, GroupInfo):
                found = self._learn_group_info(line, carried.message)
                differs = state_differences(found, line)
            elif isinstance(carried.message, KeyPackageIn):
                verdict = self._judge_key_package(carried.message, line.get("expect"))
                differs = _reference_differences(line, "key_package_ref", _key_package_ref(carried.message))
            else:
                _check_welcome(carried.message)
        except RuleError as error:
            verdict = error.invalid
        expect = line.get("expect", "accept")
        if expect in _PASSES and isinstance(verdict, Invalid):
            differs.append(f"expected {expect}, but the message was refused")
        if expect in _REFUSED and not isinstance(verdict, Invalid):
            differs.append(f"expected {expect}, but the message was not refused")
        return Record(name, kind, verdict, epoch, found, tuple(differs), judged_by_expect=True)

    def _judge_message(self, line: Line, sent: MLSMessage) -> tuple[Verdict, Knowledge, list[str]]:
        """Judge a message in its partition; open the next partition if it is a commit."""
        if self._groups and sent.group_id not in self._groups:
            reject(WRONG_GROUP)
        key = _partition_key(line) or self._partition_by_epoch(sent)
        judgement = judge(self._partitions.get(key, NotKnown()), sent)
        self._partitions[key] = judgement.knowledge
        verdict = judgement.verdict
        if isinstance(verdict, Invalid):
            return verdict, judgement.knowledge, []
        ref = verdict.ref if isinstance(verdict, Valid) else None
        differs = _reference_differences(line, "proposal_ref", ref)
        if sent.content_type is not ContentType.COMMIT:
            return verdict, judgement.knowledge, differs
        sent_along = line.get("group_info")
        following = next_knowledge(judgement, sent, None if sent_along is None else parse_group_info(sent_along))
        expected = line.get("next")
        expected = expected if isinstance(expected, dict) else {}
        opens = _partition_key(expected)
        if opens is not None:
            self._partitions[opens] = following
        elif _partition_key(line) is None and line.get("expect", "accept") == "accept":
            number = len(self._partitions)  # two commits in one partition open two partitions
            self._partitions[f"{_named_by_epoch(following)}, {number}"] = following
        return verdict, following, differs + state_differences(following, expected)

    def _partition_by_epoch(self, sent: MLSMessage) -> str:
        """Return the partition of this epoch whose state fits the signature, or else the newest one of this epoch."""
        found = [
            key
            for key, known in reversed(self._partitions.items())
            if epoch_of(known) == sent.epoch and _group_id(known) == sent.group_id
        ]
        for key in found:
            group = state_of(self._partitions[key])
            if group is not None and signature_fits(group, sent):
                return key
        return found[0] if found else f"{sent.group_id!r} epoch {sent.epoch}"

    def _partition_of_state(self, context: GroupContext) -> str:
        """Return the key of the partition whose state a GroupInfo describes, or else the key of a new partition."""
        for key, known in self._partitions.items():
            group = state_of(known)
            if group is not None and group.context == context:
                return key
        return _named_by_epoch(NotKnown(context.epoch, context.group_id))

    def _learn_group_info(self, line: Line, info: GroupInfo) -> Knowledge:
        context = info.group_context
        suite = suite_of(context.cipher_suite)
        if suite is None:
            reject(UNKNOWN_SUITE)
        key = _partition_key(line) or self._partition_of_state(context)
        tree_hex = line.get("ratchet_tree")
        if tree_hex is None and extension_data(info.extensions, ExtensionType.RATCHET_TREE) is None:
            tree_hex = self._trees.get(_tree_place(line))
        tree = None if tree_hex is None else parse_hex(tree_hex)
        known = self._partitions.get(key)
        if not self._groups.get(context.group_id) and (known is None or key in self._created):
            knowledge = begin(info, tree, group_id=context.group_id, suite=suite)
        else:
            unknown = NotKnown(None if _partition_key(line) else context.epoch)  # without keys, epochs name partitions
            knowledge = with_group_info(unknown if known is None else known, info, tree)
        self._groups[context.group_id] = True
        self._suites.add(suite.code)
        self._partitions[key] = knowledge
        return knowledge

    def _judge_key_package(self, package: KeyPackageIn, expect: object) -> Verdict:
        """Judge a KeyPackage as at an upload (semantics: key-packages).

        Returns `Unknown` for an invalid KeyPackage if the story expects `accept_upload` and no group in the story has
        the KeyPackage's suite.
        """
        try:
            package.validate(self._now_s, max_lifetime_s=_ANY_LIFETIME_S)
        except FaultError as error:
            if expect == "accept_upload" and package.cipher_suite not in self._suites:
                return Unknown((Missing("group of cipher suite", str(package.cipher_suite)),))
            return Invalid(KEY_PACKAGE, error.fault.section, error.fault.rule)
        return Valid()


def _group_id(known: Knowledge) -> bytes | None:
    return known.group.group_id if isinstance(known, Derived | Claimed) else known.group_id


def _named_by_epoch(known: Knowledge) -> str:
    """Return a name for a partition without a key in the story; it differs from every partition key."""
    return f"{_group_id(known)!r} epoch {epoch_of(known)}"


def _partition_key(line: Line) -> str | None:
    key = line.get("partition_key")
    return key if isinstance(key, str) else None


def _tree_place(line: Line) -> tuple[object, ...]:
    return line.get("group_id"), line.get("branch"), line.get("epoch")


def _reference_differences(line: Line, field: str, ref: bytes | None) -> list[str]:
    return (
        [f"{field} differs from the recording"] if ref is not None and line.get(field, ref.hex()) != ref.hex() else []
    )


def _key_package_ref(package: KeyPackageIn) -> bytes | None:
    suite = suite_of(package.cipher_suite)
    return None if suite is None else package.ref(suite)


def _check_welcome(welcome: Welcome) -> None:
    if suite_of(welcome.cipher_suite) is None:
        reject(UNKNOWN_SUITE)
    if not welcome.secrets:
        reject(WELCOME_EMPTY)


def _check_tree_parses(text: object) -> None:
    try:
        RATCHET_TREE.decode(parse_hex(text))
    except WireError as error:
        reject(MALFORMED, str(error))
