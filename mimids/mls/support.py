"""What all members of a subtree support, as a small record that is shared by all subtrees with the same support.

A tree keeps the record of every subtree. So a rule such as "every member supports it" (RFC 9420 sections 7.3, 12.2) is
checked at the root, without looking at each member.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import attrs

from mimids.mls.leaf_node import Capabilities

RECORDS: Final = 512  # in each cache; the largest record has a quarter of a megabyte


@attrs.frozen(eq=False)
class Support:
    """What every member of a set supports, and the credential types that at least one of them uses."""

    versions: frozenset[int]
    cipher_suites: frozenset[int]
    extensions: frozenset[int]
    proposals: frozenset[int]
    credentials: frozenset[int]
    credentials_in_use: frozenset[int]


@lru_cache(maxsize=RECORDS)
def _shared_record(*sets: frozenset[int]) -> Support:
    """Return the shared record for these sets: equal records are mostly the same object, which is fast to compare."""
    return Support(*sets)


@lru_cache(maxsize=RECORDS)
def support_of(capabilities: Capabilities, credential_type: int) -> Support:
    """Return what one member supports."""
    return _shared_record(
        frozenset(map(int, capabilities.versions)),
        frozenset(map(int, capabilities.cipher_suites)),
        frozenset(map(int, capabilities.extensions)),
        frozenset(map(int, capabilities.proposals)),
        frozenset(map(int, capabilities.credentials)),
        frozenset((int(credential_type),)),
    )


def common_support(one: Support | None, other: Support | None) -> Support | None:
    """Return what the members of both sets support; None stands for a set without members."""
    if one is other or other is None:
        return one
    if one is None:
        return other
    return _intersect(one, other)


@lru_cache(maxsize=RECORDS)
def _intersect(one: Support, other: Support) -> Support:
    return _shared_record(
        one.versions & other.versions,
        one.cipher_suites & other.cipher_suites,
        one.extensions & other.extensions,
        one.proposals & other.proposals,
        one.credentials & other.credentials,
        one.credentials_in_use | other.credentials_in_use,
    )
