"""Duties of clients: check commits, send proposals again, never rejoin automatically."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from mimids.client import BranchTerminated, Departure, Expected, Problem, UnexpectedCommit, check_commit, requests
from mimids.mls.code_points import ContentType
from mimids.mls.framing import MLSMessage
from mimids.mls.group_info import GroupInfo
from mimids.mls.leaf_node import LeafNode
from mimids.testing import PretendGroup
from mimids.wire.codec import WireError
from mimids.wire.declare import decode, encode
from mimids.wire.ids import CipherSuite, GroupId, PartitionKey, ProviderId
from mimids.wire.messages import CommitHint, Message, SendRequest
from tests.vectors import load_lines

GROUP = PretendGroup.at("a.example")
LINES = load_lines("conversations/public.jsonl")


def recorded(name: str) -> bytes:
    return bytes.fromhex(next(line["bytes"] for line in LINES if line.get("name") == name))


def recorded_key(name: str) -> PartitionKey:
    return PartitionKey.from_hex(next(line["partition_key"] for line in LINES if line.get("name") == name))


INFO = decode(MLSMessage, recorded("group_info_epoch1"))
OTHER_INFO = decode(MLSMessage, recorded("group_info_epoch0"))
COMMIT = decode(MLSMessage, recorded("add_bob_carol"))
KEY = recorded_key("group_info_epoch1")


def expected() -> Expected:
    info = INFO.message
    assert isinstance(info, GroupInfo)
    tree = info.ratchet_tree()
    assert tree is not None
    node = tree[2 * info.signer]
    assert node is not None
    assert isinstance(node.node, LeafNode)
    context = encode(info.group_context)
    return Expected(KEY, context, info.confirmation_tag, info.signer, node.node.signature_key)


def sequenced(info: MLSMessage | None = INFO, *, key: PartitionKey = KEY, size: int = 32) -> Message:
    return Message(COMMIT, CommitHint(key.mask(size), info))


@pytest.mark.parametrize("size", [32, 48, 64])
def test_a_commit_as_expected_is_accepted(size: int) -> None:
    check_commit(sequenced(size=size), expected())
    check_commit(sequenced(None), expected())


def forged() -> MLSMessage:
    octets = bytearray(INFO.encoded)
    octets[-1] ^= 1  # the signature is at the end
    return decode(MLSMessage, bytes(octets))


@pytest.mark.parametrize(
    ("commit", "change", "why"),
    [
        (sequenced(key=PartitionKey(bytes(16))), {}, "the partition of its new epoch"),
        (sequenced(OTHER_INFO), {}, "another epoch"),
        (sequenced(forged()), {}, "signature"),
        (sequenced(), {"signer": 1}, "not signed by the committer"),
        (sequenced(), {"confirmation_tag": bytes(32)}, "confirmation tag"),
        (sequenced(), {"signature_key": bytes(32)}, "signature"),
        (sequenced(), {"group_info": "forbidden"}, "forbids"),
        (sequenced(None), {"group_info": "needed"}, "requires"),
        (sequenced(COMMIT), {}, "not a GroupInfo"),
        (Message(GROUP.message(b"hello").message, None), {}, "not a commit"),
    ],
)
def test_a_commit_that_is_not_as_expected_is_ignored(commit: Message, change: dict[str, Any], why: str) -> None:
    with pytest.raises(UnexpectedCommit, match=why):
        check_commit(commit, attrs.evolve(expected(), **change))


def plain(request: SendRequest) -> Message:
    hint = None if request.commit_data is None else CommitHint(request.commit_data.next_partition_key.mask(32), None)
    return Message(request.message, hint)


def never(_: Message) -> SendRequest:
    raise AssertionError("nothing is to be proposed")


def proposing(group: PretendGroup) -> tuple[list[Message], Callable[[Message], SendRequest]]:
    seen: list[Message] = []

    def propose(commit: Message) -> SendRequest:
        seen.append(commit)
        return group.message(b"a proposal")

    return seen, propose


def test_a_departure_is_done_when_its_proposal_is_sequenced() -> None:
    proposal, other, (commit, _) = GROUP.message(b"remove me"), GROUP.message(b"hello"), GROUP.commit()
    departure = Departure(proposal)
    assert departure.look([plain(other)], never) is None
    assert not departure.done
    assert departure.look([plain(proposal), plain(commit)], never) is None
    assert departure.done
    assert departure.look([plain(commit)], never) is None


def test_a_proposal_that_came_after_a_commit_is_made_again_in_the_next_epoch() -> None:
    commit, following = GROUP.commit()
    proposal = GROUP.message(b"remove me")
    departure = Departure(proposal)
    seen, propose = proposing(following)
    again = departure.look([plain(commit), plain(proposal)], propose)
    assert seen == [plain(commit)]
    assert again is not None
    assert again is departure.request
    assert again.partition_key == following.key
    assert not departure.done
    assert departure.look([plain(proposal)], never) is None, "the late one does not count"
    assert departure.look([plain(again)], never) is None
    assert departure.done


def test_a_commit_to_be_ignored_does_not_end_a_departure() -> None:
    proposal, (commit, _) = GROUP.message(b"remove me"), GROUP.commit()
    departure = Departure(proposal)
    assert departure.look([plain(commit), plain(proposal)], lambda _: None) is None
    assert departure.done


def test_a_terminated_branch_says_that_clients_must_not_rejoin_automatically() -> None:
    document = json.dumps({"type": "urn:mimids:problem:branch-terminated", "detail": "this branch was terminated"})
    problem = Problem.from_json(409, document.encode())
    assert isinstance(problem, BranchTerminated)
    assert not problem.is_temporary
    assert "do not rejoin automatically" in str(problem)


@pytest.mark.parametrize("document", [b"", b"[]", b"\xff", b"{}", b'{"status": "no"}', b"[" * 9**6], ids=len)
def test_a_document_that_is_not_a_problem_is_a_refusal_too(document: bytes) -> None:
    assert Problem.from_json(499, document).status == 499
    assert Problem.from_json(None, document).status == 500
    assert str(Problem.from_json(None, document))


def test_requests_are_made_from_the_bytes_of_an_mls_library() -> None:
    a, b, c = (ProviderId(f"{each}.example") for each in "abc")
    hello, welcome = recorded("hello_from_alice"), recorded("add_bob_carol_welcome")
    said = requests.message(hello, KEY)
    assert (said.message.encoded, said.partition_key, said.commit_data) == (hello, KEY, None)
    first = recorded_key("add_bob_carol")
    made = requests.commit(
        COMMIT.encoded, first, KEY, group_info=INFO.encoded, welcome=welcome, service_providers=[b, c]
    )
    assert made.commit_data is not None
    assert made.commit_data.group_info == INFO
    assert made.commit_data.welcome_data is not None
    assert made.commit_data.welcome_data.service_providers == (b, c)
    assert decode(SendRequest, encode(made)) == made
    tree = bytes.fromhex(next(line["bytes"] for line in LINES if line["kind"] == "ratchet_tree"))
    group = requests.creation(GroupId(b"g"), CipherSuite(1), first, group_info=OTHER_INFO.encoded, ratchet_tree=tree)
    assert group.ratchet_tree == tree
    joined = requests.external_join(recorded("good_external_commit"), KEY)
    assert joined.message.content_type is ContentType.COMMIT
    assert requests.external_proposal(recorded("carol_update")).partition is None
    assert a not in made.commit_data.welcome_data.service_providers


def test_requests_refuse_other_objects() -> None:
    with pytest.raises(ValueError, match="neither"):
        requests.message(COMMIT.encoded, KEY)
    with pytest.raises(ValueError, match="not a commit"):
        requests.commit(recorded("hello_from_alice"), KEY, KEY)
    with pytest.raises(WireError):
        requests.message(b"nonsense", KEY)
