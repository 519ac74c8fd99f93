"""The recorded conversation, as the requests that its devices send (tests/vectors/README.md has the format)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any, Final

import attrs

from mimids.mls.code_points import ContentType, SenderType
from mimids.mls.framing import MLSMessage, PublicMessage
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

HUB: Final = ProviderId("a.example")
PROVIDERS: Final = (HUB, ProviderId("b.example"), ProviderId("c.example"))
HOMES: Final[Mapping[str, ProviderId]] = {
    "alice": HUB,
    "bob": PROVIDERS[1],
    "dave": PROVIDERS[1],
    "carol": PROVIDERS[2],
    "erin": PROVIDERS[2],
    "frank": PROVIDERS[2],
    "alice-last-resort": PROVIDERS[2],  # a user in no group, who has only a last resort
}
DEVICE: Final = "1"  # the name of each user's only device, as in the recorded credentials
MASK_OCTETS: Final = 32  # the recorded suite hashes with SHA-256

_MLS_MESSAGE_HEAD: Final = 4  # version and wire format, before the KeyPackage itself
_PLAYED: Final = frozenset({"commit", "application", "proposal", "external_commit", "external_proposal"})

Request = SendRequest | ExternalJoinRequest | ExternalProposalRequest


@attrs.frozen
class Step:
    """One message with its sender; `key` is the key of its partition."""

    name: str
    by: str
    branch: str
    key: PartitionKey
    request: Request

    @property
    def commit_data(self) -> CommitData | None:
        """Return the CommitData of a commit."""
        return None if isinstance(self.request, ExternalProposalRequest) else self.request.commit_data


class Recording:
    """The conversation: uploads, the creation of the group, messages, and the members at each partition."""

    def __init__(self) -> None:
        text = files("mimids.cli.demo").joinpath("public.jsonl").read_text(encoding="utf-8")
        self._lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
        self._infos = {line["partition_key"]: line for line in self._lines if line["kind"] == "group_info"}
        self._welcomes = {line["partition_key"]: line for line in self._lines if line["kind"] == "welcome"}
        (self._created,) = (line for line in self._lines if line["kind"] == "group_created")
        self.cipher_suite = CipherSuite(self._created["ciphersuite"])
        self.group_id = GroupId(bytes.fromhex(self._created["group_id"]))
        self.key_packages = self._key_packages()
        self.plaintexts = [line["plaintext"] for line in self._lines if "plaintext" in line]
        self.owners = {
            KeyPackageRef(bytes.fromhex(line["key_package_ref"])): line["name"]
            for line in self._lines
            if line["kind"] == "key_package"
        }
        self.welcomes: dict[str, MLSMessage] = {}  # the Welcome that each user's provider gets, by user
        self.steps = tuple(self._steps())
        self.members = self._members()
        self.inferred_tree = self._inferred_tree()

    @property
    def creation(self) -> CreateGroupRequest:
        """Return the request that creates the group."""
        key = self._created["state"]["partition_key"]
        info = self._info(key)
        return CreateGroupRequest(self.group_id, MLS10, self.cipher_suite, PartitionKey.from_hex(key), info, None, None)

    def invalid(self) -> Iterator[tuple[str, SendRequest | ExternalJoinRequest]]:
        """Yield the messages whose fault can be seen without a secret, each with its fault."""
        for line in self._lines:
            if line["kind"] != "tampered" or line["expect"] != "reject":
                continue
            try:
                message = decode(MLSMessage, bytes.fromhex(line["bytes"]))
            except WireError:
                continue
            if message.content_type is not None:
                key = PartitionKey.from_hex(line["partition_key"])
                data = None
                if message.content_type is ContentType.COMMIT:
                    data = CommitData(PartitionKey(bytes(16)), None, None)
                joins = _sender(message) is SenderType.NEW_MEMBER_COMMIT
                if joins and data is not None:
                    yield line["why"], ExternalJoinRequest(message, data)
                else:
                    yield line["why"], SendRequest(message, key, data)

    def _key_packages(self) -> dict[str, bytes]:
        """Return the KeyPackage that each user uploads."""
        uploads = (line for line in self._lines if line["kind"] == "key_package")
        return {line["name"]: bytes.fromhex(line["bytes"])[_MLS_MESSAGE_HEAD:] for line in uploads}

    def _steps(self) -> Iterator[Step]:
        for line in self._lines:
            if line["kind"] in _PLAYED:
                message = decode(MLSMessage, bytes.fromhex(line["bytes"]))
                key = PartitionKey.from_hex(line["partition_key"])
                yield Step(line["name"], line["by"], line["branch"], key, self._request(line, message, key))

    def _request(self, line: Mapping[str, Any], message: MLSMessage, key: PartitionKey) -> Request:
        if line["kind"] == "external_proposal":
            return ExternalProposalRequest(message, key.mask(MASK_OCTETS))
        if "next" not in line:
            return SendRequest(message, key, None)
        following = line["next"]["partition_key"]
        data = CommitData(PartitionKey.from_hex(following), self._info(following), self._welcome(following))
        if line["kind"] == "external_commit":
            return ExternalJoinRequest(message, data)
        return SendRequest(message, key, data)

    def _info(self, key: str) -> MLSMessage | None:
        line = self._infos.get(key)
        return None if line is None else decode(MLSMessage, bytes.fromhex(line["bytes"]))

    def _welcome(self, key: str) -> WelcomeData | None:
        line = self._welcomes.get(key)
        if line is None:
            return None
        message = decode(MLSMessage, bytes.fromhex(line["bytes"]))
        if not isinstance(message.message, Welcome):
            raise TypeError("the recording calls this message a Welcome, but it is of another type")
        refs = message.message.key_package_refs
        homes = [HOMES[self.owners[ref]] for ref in refs]
        for ref, home in zip(refs, homes, strict=True):
            part = message.message.only_for({each for each, at in zip(refs, homes, strict=True) if at == home})
            self.welcomes[self.owners[ref]] = MLSMessage(message.version, message.wire_format, part)
        return WelcomeData(message, tuple(homes))

    def _members(self) -> dict[PartitionKey, frozenset[str]]:
        """Return the members of the group at each partition."""
        played = {step.name for step in self.steps}
        states = [self._created["state"]]
        states += [line["next"] for line in self._lines if "next" in line and line["name"] in played]
        return {
            PartitionKey.from_hex(state["partition_key"]): frozenset(
                member["identity"].split("/")[4] for member in state["members"]
            )
            for state in states
        }

    def _inferred_tree(self) -> tuple[PartitionKey, bytes]:
        """Return the partition whose GroupInfo has no tree, and the tree that the hub should infer."""
        (line,) = (line for line in self._lines if line["kind"] == "ratchet_tree")
        (info,) = (
            info
            for info in self._infos.values()
            if info["epoch"] == line["epoch"] and "ratchet_tree" not in info["extensions"]
        )
        return PartitionKey.from_hex(info["partition_key"]), bytes.fromhex(line["bytes"])


def _sender(message: MLSMessage) -> SenderType | None:
    return message.message.content.sender.sender_type if isinstance(message.message, PublicMessage) else None
