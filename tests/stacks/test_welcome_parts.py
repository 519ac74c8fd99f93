"""New members join by a Welcome that has only the secrets for one provider's devices."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from mimids.ds.following.outgoing_welcomes import encode_part
from mimids.store.welcomes import Offered
from mimids.wire.ids import KeyPackageRef
from tests.support.stacks import StackRefused, stack_members

GROUP = b"a group"
STACKS = ("mls-rs", "openmls")


@pytest.mark.parametrize("tree", [True, False])
@pytest.mark.parametrize(("adder", "joiners"), list(product(STACKS, STACKS)))
def test_members_join_by_their_part_of_a_welcome(adder: str, joiners: str, tree: bool, stacks_program: Path) -> None:
    with stack_members(stacks_program) as start:
        alice, *others = (
            start(stack, f"member {at}", 1, grease=False, tree=tree) for at, stack in enumerate([adder] + [joiners] * 4)
        )
        alice.ask("create", group_id=GROUP)
        packages = [other.ask("key_package") for other in others]
        made = alice.ask(
            "commit",
            group_id=GROUP,
            changes=[{"type": "add", "key_package": package["key_package"]} for package in packages],
        )
        whole, state = bytes.fromhex(made["welcome"]), alice.ask("merge", group_id=GROUP)
        given = {} if tree else {"ratchet_tree": bytes.fromhex(made["ratchet_tree"])}
        refs = [KeyPackageRef(bytes.fromhex(package["reference"])) for package in packages]
        parts = [encode_part(Offered(whole, frozenset(each))) for each in (refs[:1], refs[1:3], refs[3:])]
        for other, part in zip(others, (parts[0], parts[1], parts[1], parts[2]), strict=True):
            for wrong in parts:
                if wrong != part:
                    with pytest.raises(StackRefused):
                        other.ask("join", welcome=wrong, **given)
            assert other.ask("join", welcome=part, **given) == state
        said = alice.octets("encrypt", "message", group_id=GROUP, data=b"hello")
        assert {other.ask("process", group_id=GROUP, message=said)["data"] for other in others} == {b"hello".hex()}
