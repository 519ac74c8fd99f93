"""Replay recorded groups as a Delivery Service would follow them: `mimids mls replay` without its I/O.

Two formats are supported. A JSON array of `{cipher_suite, group_info, ratchet_tree, epochs: [{proposals, commit}]}` has
the messages that an observer saw of each group, in order. JSON lines are a story with forks (see `story`). MLS objects
are in hex.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from mimids.mls.code_points import ContentType
from mimids.mls.framing import PrivateMessage, PublicMessage
from mimids.mls.knowledge import Knowledge, begin, epoch_of, judge, next_knowledge
from mimids.mls.public_group import Valid
from mimids.mls.rules.verdict import MALFORMED, UNKNOWN_SUITE, Invalid, RuleError, reject
from mimids.mls.suites import suite_of
from mimids.replay.recordings import Line, Record, parse_group_info, parse_hex, parse_message
from mimids.replay.story import Story


def replay(text: str, *, now_s: int) -> Iterator[Record]:
    """Yield one record for each message of a recording; raise `ValueError` if the text has neither format.

    `now_s` is the time in seconds since 1970. If a line of a story is a KeyPackage, its lifetime must include that
    time. No other lifetimes are checked.
    """
    whole = _parse_json(text)
    if whole is None:
        lines = [
            _check_object(_parse_json(line), number) for number, line in enumerate(text.splitlines(), 1) if line.strip()
        ]
        yield from Story(lines, now_s).records()
        return
    recordings = [
        _check_object(each, number) for number, each in enumerate(whole if isinstance(whole, list) else [whole], 1)
    ]
    if all("epochs" in each for each in recordings):
        for number, each in enumerate(recordings):
            yield from _replay_observed(each, number)
    else:
        yield from Story(recordings, now_s).records()


def _replay_observed(recording: Line, number: int) -> Iterator[Record]:
    """Replay one group; stop if its GroupInfo is refused."""
    tree = recording.get("ratchet_tree")
    try:
        info = parse_group_info(recording["group_info"])
        suite = suite_of(info.group_context.cipher_suite)
        if suite is None:
            reject(UNKNOWN_SUITE)
        group_id = info.group_context.group_id
        knowledge = begin(info, None if tree is None else parse_hex(tree), group_id=group_id, suite=suite)
    except RuleError as error:
        yield Record(f"{number}.group_info", "group_info", error.invalid, None)
        return
    yield Record(f"{number}.group_info", "group_info", Valid(), epoch_of(knowledge), knowledge)
    for step, epoch in enumerate(recording["epochs"]):
        sent = [("proposal", each) for each in epoch.get("proposals") or ()]
        if epoch.get("commit") is not None:
            sent.append(("commit", epoch["commit"]))
        for place, (kind, hex_octets) in enumerate(sent):
            record = _replay_message(f"{number}.{step}.{kind}.{place}", kind, hex_octets, knowledge)
            knowledge = record.knowledge or knowledge
            yield record


def _replay_message(name: str, kind: str, hex_octets: object, knowledge: Knowledge) -> Record:
    try:
        sent = parse_message(hex_octets)
        if not isinstance(sent.message, PublicMessage | PrivateMessage):
            reject(MALFORMED, "only PublicMessages and PrivateMessages are sent to a group")
    except RuleError as error:
        return Record(name, kind, error.invalid, None, knowledge)
    judgement = judge(knowledge, sent)
    leads_on = sent.content_type is ContentType.COMMIT and not isinstance(judgement.verdict, Invalid)
    after = next_knowledge(judgement, sent) if leads_on else judgement.knowledge
    return Record(name, kind, judgement.verdict, sent.epoch, after)


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # deeply nested JSON makes the parser recurse
        return None


def _check_object(value: Any, number: int) -> Line:
    if not isinstance(value, dict):
        raise ValueError(f"entry {number} is not a JSON object")
    return value
