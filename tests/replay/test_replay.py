from __future__ import annotations

import json
from typing import Any

import pytest

from mimids.replay.recordings import Record
from mimids.replay.replay import replay
from tests import vectors

OTHER_STACKS = ("mls-rs-f003", "mls-rs-f003-no-trees")
RECORDED_AT = 1_795_451_365  # half a day after the recording; lifetimes run ten years
HELD_WELCOMES_AT = 1_796_000_000  # lifetimes run 90 days
OTHERS_RECORDED_AT = RECORDED_AT + 10 * 86_400
STORIES = ("public", "private", "policy", "rules", "rooms", "policy-private")
HELD_WELCOMES = ("held-welcome-public", "held-welcome-private")
TIMES = dict.fromkeys(HELD_WELCOMES, HELD_WELCOMES_AT) | dict.fromkeys(OTHER_STACKS, OTHERS_RECORDED_AT)
SUITES = ("suite-2", "suite-3", "suite-4", "suite-5", "suite-6", "suite-7", "x509")  # and credentials

# Our verdicts where a recording leaves the choice to the server; docs/mls.md gives the reasons.
OUR_CHOICE = {
    ("public", "late_from_carol_previous_epoch"): "valid",
    ("public", "trailing_byte"): "invalid",
    ("public", "missing_membership_tag"): "invalid",
    ("public", "expired_key_package"): "invalid",
    ("public", "not_yet_valid_key_package"): "invalid",
    ("public", "commit_expired_key_package"): "valid",
    ("public", "commit_not_yet_valid_key_package"): "valid",
    ("public", "true_commit_adding_expired"): "valid",
    ("public", "group_info_no_external_pub"): "valid",
    ("private", "late_from_carol_previous_epoch"): "valid",
    ("private", "trailing_byte"): "invalid",
    ("private", "private_sender_data_empty"): "invalid",
    ("private", "group_info_no_external_pub"): "valid",
    ("policy", "A_alice_proposes_carol"): "valid",
}


def story(name: str) -> tuple[list[dict[str, Any]], list[Record]]:
    lines = [line for line in vectors.load_lines(f"conversations/{name}.jsonl") if "bytes" in line]
    now_s = TIMES.get(name, RECORDED_AT)
    records = list(replay(vectors.path(f"conversations/{name}.jsonl").read_text(), now_s=now_s))
    assert [record.name for record in records] == [
        line.get("name", record.name) for line, record in zip(lines, records, strict=True)
    ]
    return lines, records


@pytest.mark.parametrize("name", STORIES + SUITES + HELD_WELCOMES + OTHER_STACKS)
def test_each_line_of_a_story_gets_the_verdict_it_expects(name: str) -> None:
    lines, records = story(name)
    chosen = {}
    for line, record in zip(lines, records, strict=True):
        shown = record.as_json()
        assert not record.failed, shown
        json.dumps(shown)
        expect = line.get("expect", "accept")
        if expect in ("policy", "recommended_reject"):
            chosen[(name, record.name)] = shown["verdict"]
        else:
            assert (shown["verdict"] == "invalid") == (expect == "reject"), shown
    assert chosen == {key: value for key, value in OUR_CHOICE.items() if key[0] == name}


@pytest.mark.parametrize("name", ["public", "policy", *SUITES])
def test_states_of_public_stories_are_known_and_match_the_recording(name: str) -> None:
    compared = 0
    for line, record in zip(*story(name), strict=True):
        shown = record.as_json()
        expected = line.get("next")
        if expected is not None:
            assert shown["state"] == "derived"
            assert (shown["tree_hash"], shown["state_epoch"]) == (expected["tree_hash"], expected["epoch"])
            assert shown["members"] == expected["members"]
            compared += 1
    assert compared > (2 if name in SUITES else 15)


@pytest.mark.parametrize("name", OTHER_STACKS)
def test_a_self_remove_of_mls_rs_is_followed_by_the_group_info_after_it(name: str) -> None:
    """It has type 0xF003, no body, and no member lists it; the tree after it may be inferred."""
    records = story(name)[1]
    found = {record.name: record.as_json() for record in records}
    assert found["frank_self_remove"]["verdict"] == "valid"
    assert found["bob_covers_self_remove"]["reason"] == "effect of proposal type 0xf003"
    assert {shown["state"] for shown in found.values()} == {None, "derived", "claimed"}


def test_a_group_whose_members_do_not_list_the_suite_is_followed() -> None:
    records = list(replay(vectors.path("conversations/suite-not-listed.json").read_text(), now_s=0))
    assert [record.as_json()["verdict"] for record in records] == ["valid"] * len(records)
    assert len(records) > 4


def test_a_key_package_is_judged_as_on_upload() -> None:
    package = next(line for line in lines_of("public") if line["kind"] == "key_package")
    grease = package["bytes"][:12] + "1a1a" + package["bytes"][16:]
    creation = next(line for line in lines_of("public") if line["kind"] == "group_info")
    for before in ([], [creation]):
        *_, record = replay(text(*before, {"bytes": grease, "expect": "reject"}), now_s=RECORDED_AT)
        assert record.as_json()["reason"] == "key-package: the cipher suite is not supported (RFC 9420 section 17.1)"
        assert not record.failed


def test_an_encrypted_story_has_only_claimed_states() -> None:
    states = [record.as_json()["state"] for _, record in zip(*story("private"), strict=True)]
    assert states.count("derived") == 1  # the creation's GroupInfo
    assert states.count("claimed") > 10
    assert states.count("unknown") > 10


@pytest.mark.parametrize("name", ["external-joins", "external-proposals", "member-commits"])
def test_observed_groups_are_replayed_to_their_end(name: str) -> None:
    """Each later signature covers the GroupContext, so a valid last message proves every earlier state."""
    recordings = vectors.load(f"observer/{name}.json")
    records = list(replay(vectors.path(f"observer/{name}.json").read_text(), now_s=0))
    assert all(record.as_json()["verdict"] == "valid" for record in records)
    expected = sum(1 + sum(len(epoch["proposals"]) + 1 for epoch in each["epochs"]) for each in recordings)
    assert len(records) == expected


def text(*lines: dict[str, Any]) -> str:
    return "\n".join(json.dumps(line) for line in lines)


def lines_of(name: str) -> list[dict[str, Any]]:
    return vectors.load_lines(f"conversations/{name}.jsonl")


def test_a_story_needs_no_descriptive_fields() -> None:
    """Without names, kinds and epochs, every line still gets the same verdict."""
    lines, records = story("public")
    bare: list[dict[str, Any]] = [
        {key: line[key] for key in ("bytes", "partition_key", "next", "expect", "ciphersuite") if key in line}
        for line in lines
        if line["kind"] != "ratchet_tree"
    ]
    before = [
        record.as_json()["verdict"]
        for line, record in zip(lines, records, strict=True)
        if line["kind"] != "ratchet_tree"
    ]
    assert [record.as_json()["verdict"] for record in replay(text(*bare), now_s=RECORDED_AT)] == before


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("public", ["wrong_epoch_resigned"]),  # without a key, its epoch may have a partition that was not seen
        ("suite-6", []),
        ("rooms", []),  # with several commits in one partition
    ],
)
def test_a_story_without_partition_keys_is_followed_by_epochs_and_signatures(name: str, lost: list[str]) -> None:
    lines, records = story(name)
    bare: list[dict[str, Any]] = []
    for line in lines:
        following = {key: value for key, value in line.get("next", {}).items() if key != "partition_key"}
        kept = {key: value for key, value in line.items() if key not in ("partition_key", "next")}
        bare.append({**kept, "next": following} if following else kept)
    again = list(replay(text(*bare), now_s=RECORDED_AT))
    differing = [
        after.name
        for before, after in zip(records, again, strict=True)
        if (before.as_json()["verdict"], after.failed) != (after.as_json()["verdict"], False)
    ]
    assert differing == lost


def test_two_groups_are_kept_apart() -> None:
    both = [line for pair in zip(lines_of("public")[:40], lines_of("policy")[:40], strict=True) for line in pair]
    records = list(replay(text(*both), now_s=RECORDED_AT))
    assert not [record.as_json() for record in records if record.failed]
    assert {record.as_json()["state"] for record in records} == {None, "derived"}


def test_a_difference_from_the_recording_fails() -> None:
    lines = lines_of("public")
    at = next(place for place, line in enumerate(lines) if line.get("name") == "bob_empty_commit")
    for field, other in (("tree_hash", "00" * 32), ("members", []), ("epoch", 99), ("confirmed_transcript_hash", "")):
        changed = {**lines[at], "next": {**lines[at]["next"], field: other}}
        failed = [record for record in replay(text(*lines[:at], changed), now_s=RECORDED_AT) if record.failed]
        assert [record.name for record in failed] == ["bob_empty_commit"]
        assert failed[0].differs == (f"{field} differs from the recording",)
    unexpected = {**lines[at], "expect": "reject"}
    assert [record.failed for record in replay(text(*lines[:at], unexpected), now_s=RECORDED_AT)][-1]


def test_a_refused_message_fails_an_observed_group() -> None:
    recordings = vectors.load("observer/external-joins.json")[:1]
    commit = recordings[0]["epochs"][0]["commit"]
    recordings[0]["epochs"][0]["commit"] = commit[:-200] + "00" * 100
    records = list(replay(json.dumps(recordings), now_s=0))
    assert [record.failed for record in records] == [False, True]


@pytest.mark.parametrize("text", ["", "[]", "\n\n"])
def test_an_empty_recording_gives_no_records(text: str) -> None:
    assert list(replay(text, now_s=0)) == []


@pytest.mark.parametrize("text", ["no json", "[1]", '"x"', "{}\n5", "[" * 9**6], ids=len)
def test_other_text_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="not"):
        list(replay(text, now_s=0))


@pytest.mark.parametrize(
    "line",
    [
        {"bytes": 5},
        {"bytes": "xx"},
        {"bytes": ""},
        {"bytes": "00010001"},
        {"bytes": None, "partition_key": 7, "next": [], "expect": None},
        {"bytes": "0001", "group_info": "zz"},
    ],
)
def test_odd_lines_get_a_verdict(line: dict[str, Any]) -> None:
    (record,) = replay(text(line), now_s=0)
    assert record.as_json()["verdict"] == "invalid"
    assert record.as_json()["rule"] == "malformed"


def test_a_message_of_an_unmentioned_group_is_unknown() -> None:
    commit = next(line for line in lines_of("public") if line.get("name") == "bob_empty_commit")
    (record,) = replay(text(commit), now_s=0)
    shown = record.as_json()
    assert (shown["verdict"], shown["state"], shown["state_epoch"]) == ("unknown", "unknown", None)
