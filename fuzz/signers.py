"""Signing again what a mutation has changed, wherever a leaf has one of our keys."""

from __future__ import annotations

from functools import cache
from typing import Any, Final, TypeVar, cast

import attrs

from mimids.mls.key_package import KeyPackageIn
from mimids.mls.leaf_node import LeafNode
from mimids.mls.suites import SUITES, Suite, suite_of
from tests.support.mls_makers import Signer

T = TypeVar("T")

SEEDS: Final = range(1, 33)  # of the clients whose keys we have


@cache
def _ours() -> dict[bytes, Signer]:
    signers = (Signer.of(code, seed) for code in SUITES for seed in SEEDS)
    return {signer.public: signer for signer in signers}


def signer_of(suite: Suite, key: bytes) -> Signer | None:
    """Return the signer with this public key; None if it is not one of ours."""
    found = _ours().get(key)
    return None if found is None or found.suite.scheme != suite.scheme else attrs.evolve(found, suite=suite)


def with_fields(value: T, **fields: Any) -> T:
    """Return a copy of a struct with some fields changed."""
    return cast("T", attrs.evolve(cast("Any", value), **fields))


def signed_leaf(suite: Suite, leaf: LeafNode, group_id: bytes, index: int) -> LeafNode:
    """Return a leaf with a signature that fits; the leaf itself if its key is not ours."""
    signer = signer_of(suite, leaf.signature_key)
    if signer is None:
        return leaf
    bare = with_fields(leaf, signature=b"")
    return with_fields(bare, signature=signer.sign(b"LeafNodeTBS", bare.tbs(group_id, index)))


def signed_key_package(package: KeyPackageIn) -> KeyPackageIn:
    """Return a KeyPackage whose two signatures fit; the KeyPackage itself if its key is not ours."""
    suite = suite_of(package.cipher_suite)
    signer = None if suite is None else signer_of(suite, package.leaf_node.signature_key)
    if suite is None or signer is None:
        return package
    bare = with_fields(package, leaf_node=signed_leaf(suite, package.leaf_node, b"", 0), signature=b"")
    return with_fields(bare, signature=signer.sign(b"KeyPackageTBS", bare.tbs()))
