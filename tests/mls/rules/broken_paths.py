"""UpdatePaths that break a rule."""

from __future__ import annotations

from mimids.mls.leaf_node import (
    HpkePublicKey,
)
from mimids.mls.proposals import (
    Add,
    Ciphertexts,
    HpkeCiphertext,
    Remove,
    UpdatePath,
    UpdatePathNode,
)
from mimids.mls.rules import verdict
from mimids.mls.rules.verdict import Invalid
from tests.support.broken_rules import (
    JOINER,
    breaks,
    committed,
    room,
)
from tests.support.mls_makers import replace
from tests.support.signing import by_value, crowd, fresh_key


@breaks(verdict.PATH_MISSING)
def empty_without_a_path() -> Invalid | None:
    return committed(room(), path=False)


@breaks(verdict.PATH_MISSING)
def removes_without_a_path() -> Invalid | None:
    return committed(room(), by_value(Remove(2)), path=False)


@breaks(verdict.PATH_LENGTH)
def path_too_short() -> Invalid | None:
    return committed(room(), change_path=lambda path: replace(path, nodes=path.nodes[:-1]))


def sealed_for(path: UpdatePath, more: int) -> UpdatePath:
    node = path.nodes[-1]
    one = HpkeCiphertext(bytes(32), bytes(48))
    count = node.encrypted_path_secret.count + more
    return replace(path, nodes=(*path.nodes[:-1], replace(node, encrypted_path_secret=Ciphertexts.of(*[one] * count))))


@breaks(verdict.PATH_CIPHERTEXTS)
def sealed_for_one_too_many() -> Invalid | None:
    return committed(room(), change_path=lambda path: sealed_for(path, 1))


@breaks(verdict.PATH_CIPHERTEXTS)
def sealed_for_the_newcomer_as_well() -> Invalid | None:
    return committed(room(), by_value(Add(JOINER.key_package())), change_path=lambda path: sealed_for(path, 1))


def first_key(path: UpdatePath, key: HpkePublicKey) -> UpdatePath:
    return replace(path, nodes=(UpdatePathNode(key, path.nodes[0].encrypted_path_secret), *path.nodes[1:]))


@breaks(verdict.PATH_KEY)
def key_too_short() -> Invalid | None:
    return committed(room(), change_path=lambda path: first_key(path, HpkePublicKey(bytes(31))))


@breaks(verdict.PATH_KEY)
def key_off_the_curve() -> Invalid | None:
    here = crowd(3, suite=2)
    return committed(here, change_path=lambda path: first_key(path, HpkePublicKey(b"\x04" + bytes([7]) * 64)))


@breaks(verdict.PATH_KEY_REUSED)
def key_of_another_member() -> Invalid | None:
    here = room()
    return committed(here, change_path=lambda path: first_key(path, here.tree.leaf(3).encryption_key))


@breaks(verdict.PATH_KEY_REUSED)
def key_twice_in_the_path() -> Invalid | None:
    return committed(room(), change_path=lambda path: first_key(path, path.leaf_node.encryption_key))


@breaks(verdict.PATH_PARENT_HASH)
def parent_hash_of_another_path() -> Invalid | None:
    return committed(room(), change_leaf={"origin": bytes(32)})


@breaks(verdict.PATH_PARENT_HASH)
def key_that_the_leaf_did_not_sign() -> Invalid | None:
    return committed(room(), change_path=lambda path: first_key(path, fresh_key(JOINER.suite)))
