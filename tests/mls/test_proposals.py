"""Proposals and commits: the counted ciphertexts of a commit's path."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mimids.mls.leaf_node import HpkePublicKey
from mimids.mls.proposals import Ciphertexts, HpkeCiphertext, UpdatePathNode
from mimids.wire.declare import codec

_SIZES = st.tuples(st.integers(0, 140), st.integers(0, 140))


@given(st.lists(_SIZES, max_size=6) | st.tuples(_SIZES, st.integers(1, 8)).map(lambda it: [it[0]] * it[1]))
def test_ciphertexts_are_counted_alike_whether_their_shapes_are_equal_or_not(sizes: list[tuple[int, int]]) -> None:
    packed = Ciphertexts.of(*(HpkeCiphertext(bytes(kem), bytes(sealed)) for kem, sealed in sizes))
    node = codec(UpdatePathNode).decode(codec(UpdatePathNode).encode(UpdatePathNode(HpkePublicKey(b"key"), packed)))
    assert node.encrypted_path_secret.count == len(sizes)
    assert node.encrypted_path_secret.unpack() == packed.unpack()
