"""Clients and groups with real signatures, for what no recording has. Confirmation and membership tags are made up.

A `Room` is a small implementation of the public part of MLS groups, on `NaiveTree`. It shares only the structures and
the signature primitives with the code under test. Tests can change any field before it is signed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import count
from typing import Any

import attrs
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mimids.mls.code_points import (
    ContentType,
    CredentialType,
    ExtensionType,
    LeafNodeSource,
    ProposalOrRefType,
    ProposalType,
    SenderType,
    WireFormat,
)
from mimids.mls.framing import AuthenticatedContent, FramedContent, MLSMessage, PublicMessage, Sender
from mimids.mls.group_info import GroupContext, GroupInfo
from mimids.mls.key_package import KeyPackageIn
from mimids.mls.leaf_node import Capabilities, Credential, Extension, HpkePublicKey, LeafNode, Lifetime
from mimids.mls.proposals import (
    Add,
    AppDataUpdate,
    AppEphemeral,
    Ciphertexts,
    Commit,
    ExternalInit,
    GroupContextExtensions,
    HpkeCiphertext,
    PreSharedKey,
    Proposal,
    ProposalOrRef,
    ProposalRef,
    ReInit,
    Remove,
    SelfRemove,
    Unparsed,
    Update,
    UpdatePath,
    UpdatePathNode,
)
from mimids.mls.suites import SUITES, Suite
from mimids.wire.ids import MLS10, GroupId
from tests.support.mls_makers import Signer, replace
from tests.support.naive_tree import NaiveTree, opaque

GROUP = GroupId(b"mimi://a.example/g/room")
EXTRA_EXTENSIONS = (ExtensionType.APP_DATA_DICTIONARY, ExtensionType(0xF0F1))
EXTRA_PROPOSALS = (
    ProposalType.APP_DATA_UPDATE,
    ProposalType.APP_EPHEMERAL,
    ProposalType.SELF_REMOVE,
    ProposalType(0xF0F2),
)
_TYPES = {
    Add: ProposalType.ADD,
    Update: ProposalType.UPDATE,
    Remove: ProposalType.REMOVE,
    PreSharedKey: ProposalType.PSK,
    ReInit: ProposalType.REINIT,
    ExternalInit: ProposalType.EXTERNAL_INIT,
    GroupContextExtensions: ProposalType.GROUP_CONTEXT_EXTENSIONS,
    AppDataUpdate: ProposalType.APP_DATA_UPDATE,
    AppEphemeral: ProposalType.APP_EPHEMERAL,
    SelfRemove: ProposalType.SELF_REMOVE,
    bytes: ProposalType(0xF0F2),
    Unparsed: ProposalType(0xF0F2),
}
_CURVES: dict[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
_fresh = count(1000)
_known: dict[bytes, dict[Credential, Client]] = {}  # by signature key and name: tests give one seed several names


@lru_cache(maxsize=65536)
def hpke_key(suite: Suite, number: int) -> HpkePublicKey:
    """Return the HPKE public key of a number; a valid point if the suite's KEM uses points."""
    if suite.kems[0] not in _CURVES:
        return HpkePublicKey(number.to_bytes(suite.hpke_key_size, "big"))
    key = ec.derive_private_key(number, _CURVES[suite.kems[0]]).public_key()
    return HpkePublicKey(key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))


def fresh_key(suite: Suite) -> HpkePublicKey:
    return hpke_key(suite, next(_fresh))


@attrs.frozen
class Client:
    """A client with its signature key and credential."""

    signer: Signer
    credential: Credential
    capabilities: Capabilities

    @classmethod
    def of(cls, seed: int, name: str = "", *, suite: int = 1, **changed: Any) -> Client:
        """Return the client of a seed (1 to 255), named `user@provider`. Each seed is another device."""
        user, _, provider = (name or f"user{seed}").partition("@")
        identity = f"mimi://{provider or 'a.example'}/u/{user}/d/{seed}".encode()
        capabilities = Capabilities(
            (MLS10,), (SUITES[suite].code,), EXTRA_EXTENSIONS, EXTRA_PROPOSALS, (CredentialType.BASIC,)
        )
        credential = changed.pop("credential", Credential(CredentialType.BASIC, identity))
        client = cls(Signer.of(suite, seed), credential, replace(capabilities, **changed))
        _known.setdefault(client.signer.public, {})[client.credential] = client
        return client

    @property
    def suite(self) -> Suite:
        return self.signer.suite

    def leaf(self, source: LeafNodeSource, index: int = 0, group_id: bytes = GROUP, **changed: Any) -> LeafNode:
        """Return a leaf node with a fresh key, signed after the `changed` fields were replaced."""
        origin: Any = {LeafNodeSource.KEY_PACKAGE: Lifetime(0, 1 << 40), LeafNodeSource.COMMIT: b""}.get(source)
        unsigned = LeafNode(
            fresh_key(self.suite), self.signer.public, self.credential, self.capabilities, source, origin, (), b""
        )
        unsigned = replace(unsigned, **changed)
        return replace(unsigned, signature=self.signer.sign(b"LeafNodeTBS", unsigned.tbs(group_id, index)))

    def key_package(self, leaf: LeafNode | None = None, **changed: Any) -> KeyPackageIn:
        """Return a signed KeyPackage."""
        leaf = self.leaf(LeafNodeSource.KEY_PACKAGE) if leaf is None else leaf
        unsigned = replace(KeyPackageIn(MLS10, self.suite.code, fresh_key(self.suite), leaf, (), b""), **changed)
        return replace(unsigned, signature=self.signer.sign(b"KeyPackageTBS", unsigned.tbs()))


def proposal(body: Any) -> Proposal:
    """Return a proposal of the body's type; bytes become one of an unknown type, also without an opaque<V> around."""
    return Proposal(_TYPES[type(body)], body)


def by_value(body: Any) -> ProposalOrRef:
    return ProposalOrRef(ProposalOrRefType.PROPOSAL, proposal(body))


def by_reference(ref: ProposalRef) -> ProposalOrRef:
    return ProposalOrRef(ProposalOrRefType.REFERENCE, ref)


def ref_of(message: MLSMessage, suite: Suite) -> ProposalRef:
    assert isinstance(message.message, PublicMessage)
    return message.message.authenticated_content().proposal_ref(suite)


def public(message: PublicMessage) -> MLSMessage:
    return MLSMessage(MLS10, WireFormat.PUBLIC_MESSAGE, message)


@attrs.define
class Room:
    """One epoch of a group, and the clients at its leaves."""

    suite: Suite
    tree: NaiveTree
    clients: dict[int, Client]
    extensions: tuple[Extension, ...] = ()
    epoch: int = 0
    confirmed: bytes = b""
    tag: bytes = b""
    group_id: GroupId = GROUP
    sent: dict[ProposalRef, tuple[Proposal, Sender]] = attrs.Factory(dict)

    @classmethod
    def create(cls, client: Client, *extensions: Extension) -> Room:
        """Create a group."""
        suite = client.suite
        leaf = client.leaf(LeafNodeSource.KEY_PACKAGE)
        return cls(suite, NaiveTree(suite, [leaf]), {0: client}, extensions, tag=bytes(suite.hash_size))

    def context(self) -> GroupContext:
        return GroupContext(
            MLS10, self.suite.code, self.group_id, self.epoch, self.tree.tree_hash(), self.confirmed, self.extensions
        )

    def info(self, *extensions: Extension, signer: int = 0, tree: bool = True, **changed: Any) -> GroupInfo:
        """Return a signed GroupInfo; `tree` says whether it contains the ratchet tree."""
        carried = (Extension(ExtensionType.RATCHET_TREE, self.tree.encode()),) if tree else ()
        unsigned = replace(GroupInfo(self.context(), (*carried, *extensions), self.tag, signer, b""), **changed)
        return replace(unsigned, signature=self.clients[signer].signer.sign(b"GroupInfoTBS", unsigned.tbs()))

    def propose(self, sender: Sender | int, body: Any, *, by: Signer | None = None, **changed: Any) -> MLSMessage:
        """Return a signed proposal, and remember it so that a commit of this room can refer to it."""
        sender = Sender(SenderType.MEMBER, sender) if isinstance(sender, int) else sender
        if by is None:
            assert sender.index is not None
            by = self.clients[sender.index].signer
        made = proposal(body) if not isinstance(body, Proposal) else body
        message = self.send(sender, by, made, **changed)
        self.sent[ref_of(message, self.suite)] = (made, sender)
        return message

    def send(self, sender: Sender, by: Signer, content: Any, *, tag: bytes | None = None, **changed: Any) -> MLSMessage:
        """Return a signed proposal or commit of this epoch."""
        kind = ContentType.COMMIT if isinstance(content, Commit) else ContentType.PROPOSAL
        framed = replace(FramedContent(self.group_id, self.epoch, sender, b"", kind, content), **changed)
        unsigned = AuthenticatedContent(WireFormat.PUBLIC_MESSAGE, framed, b"", tag)
        signature = by.sign(b"FramedContentTBS", unsigned.tbs(self.context().encoded))
        membership = bytes(self.suite.hash_size) if sender.sender_type is SenderType.MEMBER else None
        return public(PublicMessage(framed, signature, tag, membership))

    def commit(
        self,
        committer: int | Client,
        *items: ProposalOrRef,
        path: bool = True,
        tag: bytes | None = None,
        change_leaf: dict[str, Any] | None = None,
        change_path: Callable[[UpdatePath], UpdatePath] = lambda made: made,
    ) -> tuple[MLSMessage, Room]:
        """Return a signed commit and the room after it. A `Client` as committer makes an external commit.

        The returned room is the state of an honest group after the commit, so it is useful only for valid commits.
        """
        index = committer if isinstance(committer, int) else None
        sender = Sender(SenderType.NEW_MEMBER_COMMIT, None) if index is None else Sender(SenderType.MEMBER, index)
        client = self.clients[committer] if isinstance(committer, int) else committer
        tree, clients, extensions, new = self._applied(items, sender)
        made: UpdatePath | None = None
        if path:
            if index is None:
                index = tree.leftmost_blank()
            made = self._path(tree, client, index, new, change_leaf or {})
            tree.nodes[2 * index : 2 * index + 1] = [made.leaf_node]
            clients[index] = client
            made = change_path(made)
        tag = self.suite.hash(self.tag + b"next") if tag is None else tag
        message = self.send(sender, client.signer, Commit(tuple(items), made), tag=tag)
        assert isinstance(message.message, PublicMessage)
        interim = self.suite.hash(self.confirmed + opaque(self.tag))
        confirmed = self.suite.hash(interim + message.message.authenticated_content().confirmed_transcript_hash_input())
        return message, Room(self.suite, tree, clients, extensions, self.epoch + 1, confirmed, tag, self.group_id)

    def _applied(
        self, items: tuple[ProposalOrRef, ...], committer: Sender
    ) -> tuple[NaiveTree, dict[int, Client], tuple[Extension, ...], list[int]]:
        """Apply the proposals that can be applied; the others are for tests that expect a refusal."""
        tree, clients, extensions = self.tree.copy(), dict(self.clients), self.extensions
        covered: list[tuple[Proposal, Sender]] = []
        for item in items:
            if isinstance(item.value, Proposal):
                covered.append((item.value, committer))
            elif item.value in self.sent:
                covered.append(self.sent[item.value])
        for each, _ in covered:
            if isinstance(each.body, GroupContextExtensions):
                extensions = each.body.extensions
        for each, sender in covered:
            if isinstance(each.body, Update) and sender.index is not None:
                tree.update(sender.index, each.body.leaf_node)
        for each, sender in covered:
            gone = each.body.removed if isinstance(each.body, Remove) else None
            gone = sender.index if isinstance(each.body, SelfRemove) else gone
            if gone is not None and gone in clients:
                tree.remove(gone)
                del clients[gone]
        new = []
        for each, _ in covered:
            if isinstance(each.body, Add):
                index = tree.add(each.body.key_package.leaf_node)
                client = client_of(each.body.key_package.leaf_node)
                assert client is not None
                clients[index] = client
                new.append(index)
        return tree, clients, extensions, new

    def _path(self, tree: NaiveTree, client: Client, index: int, new: list[int], changed: dict[str, Any]) -> UpdatePath:
        if (
            index >= tree.leaf_count
        ):  # the committer has removed itself: an invalid commit, for a test that expects a refusal
            return UpdatePath(client.leaf(LeafNodeSource.COMMIT, index, self.group_id), ())
        beside = [tree.resolution(child) for _, child in tree.filtered_path(index)]
        keys = [fresh_key(self.suite) for _ in beside]
        sealed = HpkeCiphertext(bytes(self.suite.kem_output_size), bytes(self.suite.hash_size + 16))
        nodes = tuple(
            UpdatePathNode(key, Ciphertexts.of(*[sealed for x in resolution if x // 2 not in new or x % 2]))
            for key, resolution in zip(keys, beside, strict=True)
        )
        parent_hash = tree.set_path(index, keys)
        leaf = client.leaf(LeafNodeSource.COMMIT, index, self.group_id, **{"origin": parent_hash, **changed})
        return UpdatePath(leaf, nodes)


def client_of(leaf: LeafNode) -> Client | None:
    """Return the client whose signature key a leaf has, None for a key that is not ours.

    Of several clients with this key it is the one of the leaf's name, or else the newest.
    """
    clients = _known.get(leaf.signature_key, {})
    return clients.get(leaf.credential, next(reversed(clients.values()), None))


def crowd(size: int, *, suite: int = 1, extensions: tuple[Extension, ...] = (), path: bool = True) -> Room:
    """Return a room of `size` clients, seeds 1 to `size`, added by the first in one commit."""
    room = Room.create(Client.of(1, suite=suite), *extensions)
    if size == 1:
        return room
    others = [Client.of(seed, suite=suite) for seed in range(2, size + 1)]
    _, room = room.commit(0, *[by_value(Add(each.key_package())) for each in others], path=path)
    return room
