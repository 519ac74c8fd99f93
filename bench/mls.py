"""Public group state compared with the least possible work and memory (bench: programs-and-bars).

- Loading a GroupInfo and the tree of 1,000 members, compared with the verification of the same signatures alone.
- A commit, from octets to the next state, compared with its two signatures, its hashes and one scan of its lengths;
  median of fifty.
- Storage for each epoch, over 51 epochs: the rows of the store compared with the octets of the changed nodes and their
  hashes, and the memory of the states compared with that of the same nodes alone.
- Loading 10,000 members, compared with ten times loading 1,000.

    python -m bench.mls [RECORDING]

RECORDING is `large/group-1000.jsonl`; the default is the file of the tests.
"""

from __future__ import annotations

import gc
import hashlib
import json
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Final

import attrs
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mimids.mls import suites
from mimids.mls.code_points import CredentialType, ExtensionType, LeafNodeSource, NodeType
from mimids.mls.framing import MLS_MESSAGE, MLSMessage, PublicMessage
from mimids.mls.group_info import GroupContext, GroupInfo
from mimids.mls.leaf_node import (
    Capabilities,
    Credential,
    Extension,
    HpkePublicKey,
    LeafNode,
    Lifetime,
    Node,
    ParentNode,
    SignaturePublicKey,
)
from mimids.mls.opening import open_group
from mimids.mls.proposals import Commit
from mimids.mls.public_group import PublicGroup
from mimids.mls.rules.checks import apply
from mimids.mls.suites import SUITES, Suite, verify_with_label
from mimids.mls.tree.ratchet_tree import RatchetTree
from mimids.mls.tree.rows import changed_nodes
from mimids.wire.declare import decode
from mimids.wire.ids import MLS10, GroupId
from mimids.wire.varint import read_mls
from tests import vectors

ROUNDS: Final = 7
SUITE: Final = SUITES[1]
Signed = tuple[bytes, bytes, bytes, bytes]  # key, label, content, signature


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of one call in this thread, with an empty cache of parsed signature keys."""
    suites._public_key.cache_clear()
    start = time.thread_time()
    work()
    return time.thread_time() - start


def ratio(work: Callable[[], object], floor: Callable[[], object], rounds: int = ROUNDS) -> tuple[float, float]:
    """Return the median ratio of alternating rounds, and the floor's median seconds."""
    pairs = [(cpu_seconds(work), cpu_seconds(floor)) for _ in range(rounds)]
    return statistics.median(one / other for one, other in pairs), statistics.median(other for _, other in pairs)


def verify_all(signed: list[Signed]) -> None:
    for key, label, content, signature in signed:
        if not verify_with_label(SUITE, key, label, content, signature):
            raise AssertionError("a signature of the recording does not verify")


def signatures_of_state(info: GroupInfo, tree: RatchetTree) -> list[Signed]:
    group_id = info.group_context.group_id
    found = [
        (bytes(leaf.signature_key), b"LeafNodeTBS", leaf.tbs(group_id, index), leaf.signature)
        for index, leaf in tree.leaves()
    ]
    signer = tree.leaf(info.signer)
    assert signer is not None
    return [*found, (signer.signature_key, b"GroupInfoTBS", info.tbs(), info.signature)]


def loading(info_octets: bytes, tree_octets: bytes) -> tuple[float, float]:
    def load() -> None:
        message = MLS_MESSAGE.decode(info_octets).message
        assert isinstance(message, GroupInfo)
        open_group(message, tree_octets)

    info = MLS_MESSAGE.decode(info_octets).message
    assert isinstance(info, GroupInfo)
    signed = signatures_of_state(info, RatchetTree.decode(SUITE, tree_octets))
    return ratio(load, lambda: verify_all(signed))


class Recording(Suite):
    """A suite that records what it hashes, so that the same can be hashed again."""

    log: list[bytes]

    def hash(self, data: bytes) -> bytes:
        self.log.append(data)
        return super().hash(data)


def hashed_by(group: PublicGroup, message: MLSMessage) -> list[bytes]:
    """Return the inputs that a commit hashes: transcript, parent hashes, tree hashes of the changed nodes."""
    recording = Recording(**attrs.asdict(group.suite))
    object.__setattr__(recording, "log", [])
    tree = RatchetTree(recording, group.tree.root, group.tree.height)
    apply(attrs.evolve(group, suite=recording, tree=tree), message)
    return recording.log


def scan(octets: bytes) -> int:
    """Check every length in a public commit of a member, once; return how many vectors it has."""
    end = len(octets)
    vectors_seen = 0

    def skip(pos: int) -> int:
        nonlocal vectors_seen
        vectors_seen += 1
        length, pos = read_mls(octets, pos, end)
        if length > end - pos:
            raise ValueError("truncated")
        return pos + length

    pos = skip(4) + 8 + 1 + 4  # group_id, epoch, sender
    pos = skip(pos) + 1  # authenticated_data, content_type
    pos = skip(pos)  # proposals
    path, pos = octets[pos], pos + 1
    if path:
        pos = skip(skip(pos)) + 2  # encryption_key, signature_key, credential_type
        pos = skip(pos)
        for _ in range(5):  # capabilities
            pos = skip(pos)
        pos = skip(pos + 1)  # leaf_node_source, parent_hash
        pos = skip(skip(pos))  # extensions, signature
        length, pos = read_mls(octets, pos, end)
        stop = pos + length
        while pos < stop:
            pos = skip(pos)
            length, pos = read_mls(octets, pos, end)
            last = pos + length
            while pos < last:
                pos = skip(skip(pos))
    pos = skip(skip(skip(pos)))  # signature, confirmation_tag, membership_tag
    if pos != end:
        raise ValueError("trailing bytes")
    return vectors_seen


def commits(group: PublicGroup, recorded: list[bytes]) -> tuple[float, float]:
    """Apply the commits; return the median of their ratios, and the floor's median seconds."""
    state, ratios, floors = group, [], []
    for octets in recorded:
        one, seconds = commit(state, octets)
        ratios.append(one)
        floors.append(seconds)
        state = apply(state, MLS_MESSAGE.decode(octets))
    return statistics.median(ratios), statistics.median(floors)


def commit(before: PublicGroup, octets: bytes) -> tuple[float, float]:
    """Return the ratio for one commit, and the floor's seconds."""
    message = MLS_MESSAGE.decode(octets)
    assert isinstance(message.message, PublicMessage)
    signed = signatures_of_commit(before, message.message)
    hashed = hashed_by(before, message)
    before.tree.holders_of_key(b"")  # the index of keys is part of loading, not of each commit

    def floor() -> None:
        verify_all(signed)
        for data in hashed:
            hashlib.sha256(data).digest()
        scan(octets)

    return ratio(lambda: apply(before, MLS_MESSAGE.decode(octets)), floor, rounds=5)


def signatures_of_commit(before: PublicGroup, public: PublicMessage) -> list[Signed]:
    commit, index = public.content.content, public.content.sender.index
    assert isinstance(commit, Commit)
    assert index is not None
    sender = before.tree.leaf(index)
    assert sender is not None
    tbs = public.authenticated_content().tbs(before.context.encoded)
    signed: list[Signed] = [(sender.signature_key, b"FramedContentTBS", tbs, public.signature)]
    if commit.path is not None:
        leaf = commit.path.leaf_node
        signed.append((leaf.signature_key, b"LeafNodeTBS", leaf.tbs(before.group_id, index), leaf.signature))
    for item in commit.proposals:
        package = getattr(getattr(item.value, "body", None), "key_package", None)
        if package is not None:
            leaf = package.leaf_node
            signed.append((leaf.signature_key, b"LeafNodeTBS", leaf.tbs(b"", 0), leaf.signature))
            signed.append((leaf.signature_key, b"KeyPackageTBS", package.tbs(), package.signature))
    return signed


@attrs.frozen
class Kept:
    """Octets for each epoch as rows and in memory, of the state and of its changed nodes alone."""

    rows: float
    row_nodes: float
    memory: float
    memory_nodes: float


def traced(make: Callable[[], object]) -> int:
    """Return the memory that the result of `make` uses."""
    gc.collect()
    tracemalloc.start()
    held = make()
    gc.collect()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del held
    return size


def kept(group: PublicGroup, recorded: list[bytes]) -> Kept:
    """Apply the commits and keep all states; a changed node counts with its content and its hash."""
    group.tree.holders_of_key(b"")

    def follow() -> list[PublicGroup]:
        states = [group]
        for octets in recorded:
            states.append(apply(states[-1], MLS_MESSAGE.decode(octets)))
        return states

    rows = [row for one, other in pairwise(follow()) for row in changed_nodes(one.tree, other.tree)]

    def nodes_alone() -> list[object]:
        found: list[object] = []
        for row in rows:
            inner = row.left or row.right
            node = decode(ParentNode if inner else LeafNode, row.node) if row.node else None
            found += (node, bytes(bytearray(row.tree_hash)))
        return found

    count = len(recorded)
    return Kept(
        sum(len(row.tree_hash) + len(row.node) + len(row.left) + len(row.right) for row in rows) / count,
        sum(len(row.node) + len(row.tree_hash) for row in rows) / count,
        traced(follow) / count,
        traced(nodes_alone) / count,
    )


def made_up(size: int) -> bytes:
    """Return the GroupInfo, with its tree, of a group whose members were added without a path."""
    keys = [Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big")) for number in range(1, size + 1)]
    nodes: list[Node | None] = []
    for number, key in enumerate(keys):
        content = suites.sign_content(b"LeafNodeTBS", made_up_leaf(number, key, b"").tbs(b"", 0))
        nodes += [Node(NodeType.LEAF, made_up_leaf(number, key, key.sign(content))), None]
    tree = RatchetTree.of_nodes(SUITE, tuple(nodes[:-1]))
    context = GroupContext(MLS10, SUITE.code, GroupId(b"large"), 1, tree.tree_hash(), bytes(32), ())
    carried = (Extension(ExtensionType.RATCHET_TREE, tree.encode()),)
    unsigned = GroupInfo(context, carried, bytes(32), 0, b"")
    signature = keys[0].sign(suites.sign_content(b"GroupInfoTBS", unsigned.tbs()))
    return GroupInfo(context, carried, bytes(32), 0, signature).encoded


def made_up_leaf(number: int, key: Ed25519PrivateKey, signature: bytes) -> LeafNode:
    return LeafNode(
        HpkePublicKey(number.to_bytes(32, "big")),
        SignaturePublicKey(key.public_key().public_bytes_raw()),
        Credential(CredentialType.BASIC, f"mimi://a.example/u/user{number}/d/1".encode()),
        Capabilities((MLS10,), (SUITE.code,), (), (), (CredentialType.BASIC,)),
        LeafNodeSource.KEY_PACKAGE,
        Lifetime(0, 1 << 40),
        (),
        signature,
    )


def linear() -> float:
    """Return the cost of 10,000 members over ten times that of 1,000."""
    small, large = made_up(1_000), made_up(10_000)
    return statistics.median(
        cpu_seconds(lambda: open_group(decode(GroupInfo, large)))
        / (10 * cpu_seconds(lambda: open_group(decode(GroupInfo, small))))
        for _ in range(3)
    )


def main(recording: Path) -> None:
    """Print one line for each bar."""
    lines = [json.loads(line) for line in recording.read_text().splitlines()]
    info, tree = bytes.fromhex(lines[0]["bytes"]), bytes.fromhex(lines[0]["ratchet_tree"])
    recorded = [bytes.fromhex(line["bytes"]) for line in lines if line["kind"] == "commit"]
    load_ratio, load_floor = loading(info, tree)
    print(f"mls load, 1,000 members: {load_ratio:.2f} x its signatures ({load_floor * 1e3:.0f} ms); bar 2.5")
    start = MLS_MESSAGE.decode(info).message
    assert isinstance(start, GroupInfo)
    commit_ratio, commit_floor = commits(open_group(start, tree), recorded)
    print(
        f"mls commit, median of {len(recorded)}: {commit_ratio:.2f} x its signatures, hashes and one scan "
        f"({commit_floor * 1e6:.0f} us); bar 3"
    )
    found = kept(open_group(start, tree), recorded)
    for where, state, nodes in (
        ("in rows", found.rows, found.row_nodes),
        ("in memory", found.memory, found.memory_nodes),
    ):
        print(
            f"mls state {where}, each of {len(recorded) + 1} epochs: {state / nodes:.2f} x its changed nodes "
            f"({nodes:,.0f} octets); bar 3"
        )
    print(f"mls load, 10,000 members: {linear():.2f} x ten times 1,000; linear is 1")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else vectors.path("large/group-1000.jsonl"))
