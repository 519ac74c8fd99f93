"""The program that drives MLS clients: what other tests rely on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.stacks import StackMember, StackRefused, stack_members

GROUP = b"a group"
LABEL = "mimids partition key"
UPDATE = {"type": "update"}

Start = Callable[..., StackMember]


@pytest.fixture
def start(stacks_program: Path) -> Iterator[Start]:
    with stack_members(stacks_program) as started:
        yield started


@pytest.mark.parametrize("stacks", [("mls-rs", "openmls"), ("openmls", "mls-rs")])
def test_both_libraries_export_the_same_partition_key(stacks: tuple[str, str], start: Start) -> None:
    alice, bob = (start(stack, f"member {number}", 1, grease=False) for number, stack in enumerate(stacks))
    alice.ask("create", group_id=GROUP, external_senders=[{"signature_key": bytes(32), "identity": "a.example"}])
    package = bob.octets("key_package", "key_package")
    made = alice.ask("commit", group_id=GROUP, changes=[{"type": "add", "key_package": package}])
    joined = bob.ask("join", welcome=bytes.fromhex(made["welcome"]))
    assert alice.ask("merge", group_id=GROUP) == joined
    keys = {member.ask("export", group_id=GROUP, label=LABEL, length=16)["secret"] for member in (alice, bob)}
    assert keys == {joined["partition_key"]}


@pytest.mark.parametrize("stack", ["mls-rs", "openmls"])
def test_a_refused_request_leaves_the_client_as_it_was(stack: str, start: Start) -> None:
    alice = start(stack, "alice", 2)
    state = alice.ask("create", group_id=GROUP)
    refused: list[tuple[str, dict[str, object]]] = [
        ("process", {"message": b"no message"}),
        ("commit", {"changes": [{"type": "remove", "leaf": 7}]}),
        ("unknown", {}),
    ]
    for op, fields in refused:
        with pytest.raises(StackRefused):
            alice.ask(op, group_id=GROUP, **fields)
    assert alice.ask("state", group_id=GROUP) == state


@pytest.mark.parametrize("stack", ["mls-rs", "openmls"])
def test_the_loser_of_a_race_discards_its_commit_and_follows_the_winner(stack: str, start: Start) -> None:
    alice, bob = start(stack, "alice", 1), start(stack, "bob", 1)
    alice.ask("create", group_id=GROUP)
    package = bob.octets("key_package", "key_package")
    made = alice.ask("commit", group_id=GROUP, changes=[{"type": "add", "key_package": package}])
    alice.ask("merge", group_id=GROUP)
    bob.ask("join", welcome=bytes.fromhex(made["welcome"]))
    won, lost = (member.ask("commit", group_id=GROUP, changes=[UPDATE]) for member in (alice, bob))
    assert won["next"]["partition_key"] != lost["next"]["partition_key"]
    bob.ask("discard", group_id=GROUP)
    followed = bob.ask("process", group_id=GROUP, message=bytes.fromhex(won["message"]))
    assert followed["partition_key"] == alice.ask("merge", group_id=GROUP)["partition_key"]
