"""Recorded conversations as requests to a hub, each with what its sender would send beside the message."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import attrs

from mimids.errors import MimiError
from mimids.mls.code_points import ContentType, ExtensionType, SenderType
from mimids.mls.framing import MLSMessage, PublicMessage
from mimids.mls.group_info import GroupInfo
from mimids.mls.key_package import KeyPackageIn
from mimids.mls.leaf_node import extension_data
from mimids.mls.suites import SUITES
from mimids.mls.welcome import Welcome
from mimids.wire.codec import WireError
from mimids.wire.declare import decode
from mimids.wire.ids import MLS10, CipherSuite, GroupId, KeyPackageRef, PartitionKey, ProviderId
from mimids.wire.messages import (
    CommitData,
    CreateGroupRequest,
    ExternalJoinRequest,
    ExternalProposalRequest,
    SendRequest,
    WelcomeData,
)
from tests.vectors import load_lines

MLS_MESSAGE_HEAD = 4  # version and wire format, before the KeyPackage itself

Line = dict[str, Any]
Request = SendRequest | ExternalJoinRequest | ExternalProposalRequest


@attrs.frozen
class Recorded:
    """A recorded message: its line in the file, the request that sends it, and the key of its partition."""

    index: int
    line: Line
    request: Request
    key: PartitionKey

    @property
    def name(self) -> str:
        return f"{self.index} {self.line['name']}"

    @property
    def next_key(self) -> PartitionKey | None:
        data = getattr(self.request, "commit_data", None)
        return None if data is None else data.next_partition_key


@attrs.frozen
class RecordedKeyPackage:
    """A recorded KeyPackage, and its owner according to its credential."""

    provider: ProviderId
    user: str
    device: str
    ref: KeyPackageRef
    octets: bytes
    last_resort: bool

    @classmethod
    def of(cls, line: Line) -> RecordedKeyPackage:
        octets = bytes.fromhex(line["bytes"])
        message = decode(MLSMessage, octets)
        assert isinstance(message.message, KeyPackageIn)
        credential = message.message.leaf_node.credential
        assert isinstance(credential.content, bytes)
        provider, _, user, _, device = credential.content.decode().removeprefix("mimi://").split("/")
        ref = KeyPackageRef(bytes.fromhex(line["key_package_ref"]))
        bare = octets[MLS_MESSAGE_HEAD:]
        return cls(ProviderId(provider), user, device, ref, bare, bool(line.get("last_resort")))


def _is_key_package(line: Line) -> bool:
    return bool(line["kind"] == "key_package")


class Recording:
    """A recorded conversation: the creation of a group, then its messages in order."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines = load_lines(f"conversations/{name}.jsonl")
        self._welcomes = {line["partition_key"]: line for line in self.lines if line["kind"] == "welcome"}
        self._infos = {line["partition_key"]: line for line in self.lines if line["kind"] == "group_info"}
        self.key_packages = {line["name"]: RecordedKeyPackage.of(line) for line in self.lines if _is_key_package(line)}
        self._homes = {recorded.ref: recorded.provider for recorded in self.key_packages.values()}
        self._encrypted = name == "private"
        self._created = next(line for line in self.lines if line["kind"] == "group_created")

    @property
    def mask_size(self) -> int:
        """The hash size of the group's cipher suite, which is the size of masked partition keys."""
        return SUITES[self._created["ciphersuite"]].hash_size

    def creation(self) -> CreateGroupRequest:
        line = self._created
        key = line.get("state", line)["partition_key"]
        return CreateGroupRequest(
            GroupId(bytes.fromhex(line["group_id"])),
            MLS10,
            CipherSuite(line["ciphersuite"]),
            PartitionKey.from_hex(key),
            self._group_info(key),
            None,
            None,
        )

    def messages(self) -> Iterator[Recorded]:
        """Yield the lines that parse as messages to the group."""
        for index, line in enumerate(self.lines):
            message = _parsed(line)
            if message is not None and message.content_type is not None:
                key = PartitionKey.from_hex(line["partition_key"])
                yield Recorded(index, line, self._request(line, message, key), key)

    def malformed(self) -> Iterator[Line]:
        """Yield the tampered lines that do not parse as messages to the group."""
        for line in self.lines:
            if line["kind"] == "tampered" and _parsed(line) is None:
                yield line

    def _request(self, line: Line, message: MLSMessage, key: PartitionKey) -> Request:
        sender = None
        if isinstance(message.message, PublicMessage):
            sender = message.message.content.sender.sender_type
        if sender in (SenderType.NEW_MEMBER_PROPOSAL, SenderType.EXTERNAL):
            return ExternalProposalRequest(message, key.mask(self.mask_size))
        if message.content_type is not ContentType.COMMIT:
            return SendRequest(message, key, None)
        data = self._commit_data(line, joins=sender is SenderType.NEW_MEMBER_COMMIT)
        if sender is SenderType.NEW_MEMBER_COMMIT:
            return ExternalJoinRequest(message, data)
        return SendRequest(message, key, data)

    def _commit_data(self, line: Line, *, joins: bool) -> CommitData:
        following = (line.get("next") or {}).get("partition_key")
        key = following or hashlib.sha256(line["bytes"].encode()).hexdigest()[:32]
        welcome = None if joins or following is None else self._welcome_data(following)
        return CommitData(PartitionKey.from_hex(key), self._group_info(key, line), welcome)

    def _group_info(self, key: str, commit: Line | None = None) -> MLSMessage | None:
        """Return the GroupInfo of an epoch: that of a line of its own, or the one that the commit's line has."""
        octets = self._infos[key]["bytes"] if key in self._infos else (commit or {}).get("group_info")
        if octets is None:
            return None
        message = decode(MLSMessage, bytes.fromhex(octets))
        assert isinstance(message.message, GroupInfo)
        # The hub cannot compute the tree after an encrypted commit, and refuses a GroupInfo without one.
        if self._encrypted and extension_data(message.message.extensions, ExtensionType.RATCHET_TREE) is None:
            return None
        return message

    def _welcome_data(self, key: str) -> WelcomeData | None:
        line = self._welcomes.get(key)
        if line is None:
            return None
        message = decode(MLSMessage, bytes.fromhex(line["bytes"]))
        assert isinstance(message.message, Welcome)
        return WelcomeData(message, tuple(self._homes[ref] for ref in message.message.key_package_refs))


def _parsed(line: Line) -> MLSMessage | None:
    if "bytes" not in line or not line.get("partition_key"):
        return None
    try:
        return decode(MLSMessage, bytes.fromhex(line["bytes"]))
    except WireError:
        return None


def expected(line: Line) -> str:
    """Return the verdict of the hub on a line: "accept" or "refuse".

    Where the recording leaves the verdict to the server, docs/semantics.md decides: lifetimes are not checked inside
    commits, a late message of the epoch it names is sequenced, a wrong tag length is refused because it can be checked
    without secrets, a standalone Add is accepted.
    """
    verdict = line.get("expect") or "accept"
    if verdict in ("recommended_reject", "policy"):
        certain = ("missing_membership_tag", "private_sender_data_empty")
        return "refuse" if line["name"] in certain else "accept"
    return "refuse" if verdict in ("reject", "reject_policy") else "accept"


def fits(line: Line, error: MimiError) -> bool:
    """Tell whether a refusal has the reason that the recording gives."""
    why = line.get("why", "")
    said = f"{error.code} {error} {error.members.get('rule', '')} {error.members.get('section', '')}"
    words = {
        "epoch": "epoch",
        "unknown group": "unknown-group",
        "signature": "signature",
        "blank": "blank",
        "12.2": "12.2",
        "required_capabilities": "capabilit",
        "two external_init": "external-commit",
        "Add in an external": "external-commit",
        "wrong length": "length",
        "identity": "credential-successor",
        "branch": "wrong-branch",
    }
    section = error.members.get("section")
    return f"({section})" in why or any(sign in why and word in said for sign, word in words.items())
