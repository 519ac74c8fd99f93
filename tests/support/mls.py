"""Members of MLS groups on mls-rs, in the process of the test: cipher suite 1, through its bindings for Python.

They are quicker to use than the programs of tests/stacks, and do less: no external commits, no GroupInfo. The wheel
(agentvault-mls-rs-uniffi on PyPI) exists for Linux on x86-64, macOS and Windows; elsewhere `needs_mls` skips the test.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Final

import attrs
import pytest

from mimids.client import requests
from mimids.mls.code_points import WireFormat
from mimids.mls.framing import MLSMessage
from mimids.mls.key_package import KeyPackageIn
from mimids.mls.suites import suite_of
from mimids.mls.welcome import Welcome
from mimids.wire.base64url import base64url
from mimids.wire.declare import decode
from mimids.wire.ids import CipherSuite, GroupId, PartitionKey, ProviderId
from mimids.wire.messages import CreateGroupRequest, SendRequest
from tests.support.played import BINDINGS, note

if INSTALLED := find_spec("mls_rs_uniffi") is not None:
    import mls_rs_uniffi as bindings

    class _Storage(bindings.GroupStateStorage):  # type: ignore[misc]  # the bindings have no types
        """Where mls-rs writes a member's group: memory."""

        def __init__(self) -> None:
            self.group_id = GroupId(b"")  # of the last group that was written
            self._states: dict[bytes, bytes] = {}
            self._epochs: dict[tuple[bytes, int], bytes] = {}

        def state(self, group_id: bytes) -> bytes | None:
            return self._states.get(group_id)

        def epoch(self, group_id: bytes, epoch_id: int) -> bytes | None:
            return self._epochs.get((group_id, epoch_id))

        def write(
            self, group_id: bytes, group_state: bytes, epoch_inserts: list[Any], epoch_updates: list[Any]
        ) -> None:
            self.group_id = GroupId(group_id)
            self._states[group_id] = group_state
            self._epochs.update({(group_id, each.id): each.data for each in [*epoch_inserts, *epoch_updates]})

        def max_epoch_id(self, group_id: bytes) -> int | None:
            return max((epoch for group, epoch in self._epochs if group == group_id), default=None)


needs_mls = pytest.mark.skipif(not INSTALLED, reason="agentvault-mls-rs-uniffi has no wheel for this machine")

SUITE: Final = CipherSuite(1)
_KEY_PACKAGE_HEAD: Final = b"\0\1\0\5"  # version and wire format of an MLSMessage that holds a KeyPackage


@attrs.frozen
class Made:
    """A commit that is not sent yet; `following` is the partition key of the epoch that it leads to."""

    message: bytes
    key: PartitionKey
    following: PartitionKey
    welcome: bytes | None
    homes: tuple[ProviderId, ...] = ()

    @property
    def request(self) -> SendRequest:
        return requests.commit(
            self.message, self.key, self.following, welcome=self.welcome, service_providers=self.homes
        )


class Member:
    """A client in at most one group. `key` is the partition key of its epoch."""

    def __init__(self, identity: str, provider: ProviderId) -> None:
        self.identity = identity
        self.provider = provider
        keys = bindings.generate_signature_keypair(bindings.CipherSuite.CURVE25519_AES128)
        self._storage = _Storage()
        config = bindings.ClientConfig(group_state_storage=self._storage, use_ratchet_tree_extension=True)
        self._client = bindings.Client(identity.encode(), keys, config)
        self._group: Any = None
        self._after: Any = None  # the group after the pending commit

    def __repr__(self) -> str:
        return self.identity

    def key_package(self) -> bytes:
        """Make a KeyPackage, as it is uploaded."""
        made: bytes = self._client.generate_key_package_message().to_bytes()
        return made.removeprefix(_KEY_PACKAGE_HEAD)

    # --- the group --------------------------------------------------------------------------------------------------

    def create(self, group_id: GroupId | None = None) -> CreateGroupRequest:
        group_id = group_id or GroupId(f"mimi://{self.provider}/g/{base64url(secrets.token_bytes(9))}".encode())
        _note("create")
        self._group = self._client.create_group(group_id)
        self._group.write_to_storage()
        return requests.creation(group_id, SUITE, self.key)

    def join(self, welcome: bytes) -> None:
        self._group = self._client.join_group(None, bindings.Message.from_bytes(welcome)).group
        self._group.write_to_storage()

    @property
    def group_id(self) -> GroupId:
        return self._storage.group_id

    @property
    def key(self) -> PartitionKey:
        return _key_of(self._group)

    @property
    def tree(self) -> bytes:
        """The ratchet tree, encoded."""
        tree: bytes = self._group.export_tree().bytes
        return tree

    def encrypt(self, text: str) -> SendRequest:
        _note("messages")
        message = self._group.encrypt_application_message(text.encode()).to_bytes()
        self._group.write_to_storage()
        return requests.message(message, self.key)

    # --- commits ----------------------------------------------------------------------------------------------------

    def commit(self, *, adding: Mapping[bytes, ProviderId] | None = None, removing: Sequence[Member] = ()) -> Made:
        """Make a commit that `merge` applies: of KeyPackages with their providers, of Removes, or an empty one."""
        self._group.write_to_storage()
        _note("add" if adding else "remove" if removing else "update")
        if adding:
            packages = [bindings.Message.from_bytes(_KEY_PACKAGE_HEAD + package) for package in adding]
            made = self._group.add_members(packages)
        elif removing:
            made = self._group.remove_members([each._client.signing_identity() for each in removing])
        else:
            made = self._group.commit()
        wire_format = decode(MLSMessage, made.commit_message.to_bytes()).wire_format
        _note("public handshakes" if wire_format is WireFormat.PUBLIC_MESSAGE else "private handshakes")
        key = self.key
        # What the commit leads to is known once it is applied. So apply it, and stay in the epoch with another copy.
        self._group.process_incoming_message(made.commit_message)
        self._after, self._group = self._group, None
        self._group = self._client.load_group(self.group_id)
        welcome = None if made.welcome_message is None else made.welcome_message.to_bytes()
        homes = () if welcome is None else _homes(welcome, adding or {})
        return Made(made.commit_message.to_bytes(), key, _key_of(self._after), welcome, homes)

    def merge(self) -> None:
        """Enter the epoch of the pending commit."""
        self._group, self._after = self._after, None
        self._group.write_to_storage()

    def receive(self, message: bytes) -> str | None:
        """Process a message of another member, and return its text if it has one; a commit drops our pending one."""
        received = self._group.process_incoming_message(bindings.Message.from_bytes(message))
        if received.is_commit():
            self._after = None
        self._group.write_to_storage()
        return received.data.decode() if received.is_application_message() else None


def _key_of(group: Any) -> PartitionKey:
    return PartitionKey(group.export_secret(requests.EXPORTER_LABEL.encode(), b"", PartitionKey.SIZE))


def _note(word: str) -> None:
    note(BINDINGS, SUITE, word, "no GroupInfo")


def _homes(welcome: bytes, added: Mapping[bytes, ProviderId]) -> tuple[ProviderId, ...]:
    """Return the provider of each device that a Welcome is for, in the order of its secrets."""
    found, suite = decode(MLSMessage, welcome).message, suite_of(SUITE)
    assert isinstance(found, Welcome)
    assert suite is not None
    by_ref = {decode(KeyPackageIn, package).ref(suite): home for package, home in added.items()}
    return tuple(by_ref[ref] for ref in found.key_package_refs)
