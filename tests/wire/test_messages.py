"""The structs of the wire format, byte for byte; tests/test_structs.py tests what is true of every struct."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mimids.wire
from mimids.wire import messages
from mimids.wire.codec import WireError
from mimids.wire.declare import Struct, codec, decode, encode
from mimids.wire.ids import Counter, GroupId, MaskedPartitionKey
from mimids.wire.messages import (
    SEND_RESULTS,
    CommitData,
    CommitHint,
    CreateGroupRequest,
    Epoch,
    ExternalJoinRequest,
    Frame,
    FrameType,
    GroupInfoResponse,
    KeyPackageBundleResponse,
    KeyPackageResponse,
    KeyPackageResult,
    KeyPackageStatus,
    Message,
    Messages,
    PushedEpoch,
    PushRequest,
    PushResponse,
    ReceiveResponse,
    SendRequest,
    SendResponse,
    SendResult,
    SendStatus,
    WelcomeData,
    WelcomeInitRequest,
    encode_epoch,
    encode_message,
    encode_messages_frame,
    encode_push_request,
    encode_receive_response,
    encode_send_results,
    pushed_epoch_parts,
)
from tests.support.strategies import a_few, declared, values
from tests.support.wire_examples import (
    A_HEX,
    ACCEPTED,
    ACCEPTED_HEX,
    APPLICATION,
    APPLICATION_HEX,
    BARE_DATA,
    COMMIT,
    COMMIT_HEX,
    EXAMPLES,
    FULL_DATA_HEX,
    GROUP_HEX,
    INFO,
    INFO_HEX,
    JOIN_HEX,
    KEY,
    KEY_HEX,
    KEY_PACKAGE,
    KEY_PACKAGE_HEX,
    MASK_HEX,
    NEXT_HEX,
    SAID_HEX,
    WELCOME,
    WELCOME_HEX,
)

NAMES = [type(value).__name__ for value, _ in EXAMPLES]


def refusal(cls: type[Any], octets: str) -> str:
    with pytest.raises(WireError) as caught:
        decode(cls, bytes.fromhex(octets))
    return str(caught.value)


# --- examples -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "octets"), EXAMPLES, ids=NAMES)
def test_a_struct_is_written_as_its_notation_says_and_read_again(value: Any, octets: str) -> None:
    assert encode(value).hex() == bytes.fromhex(octets).hex()
    assert decode(type(value), bytes.fromhex(octets)) == value


def test_no_struct_is_without_an_example() -> None:
    def within(value: Any) -> Iterator[type]:
        yield type(value)
        parts = value if isinstance(value, tuple) else ()
        if attrs.has(type(value)):
            parts = tuple(getattr(value, field.name) for field in attrs.fields(type(value)))
        for part in parts:
            yield from within(part)

    shown = {cls for value, _ in EXAMPLES for cls in within(value)}
    structs = {by.cls for _, by in declared(mimids.wire) if isinstance(by, Struct)}
    assert {cls for cls in structs if cls.__module__ == messages.__name__} <= shown
    assert {value.type for value, _ in EXAMPLES if isinstance(value, Frame)} == set(FrameType)


@pytest.mark.parametrize(("value", "octets"), EXAMPLES, ids=NAMES)
def test_an_example_that_is_too_short_or_too_long_is_refused_by_struct_name(value: Any, octets: str) -> None:
    whole, name = bytes.fromhex(octets), type(value).__name__
    for size in range(len(whole)):
        with pytest.raises(WireError, match=rf"^{name}\.\S+: truncated$"):
            decode(type(value), whole[:size])
    with pytest.raises(WireError, match=f"^{name}: trailing bytes$"):
        decode(type(value), whole + b"\0")


# --- fields that depend on an earlier one ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "octets", "error"),
    [
        (KeyPackageResult, "03", "KeyPackageResult.status: value not allowed"),
        (KeyPackageResult, f"ff {KEY_PACKAGE_HEX}", "KeyPackageResult.status: value not allowed"),
        (KeyPackageResult, f"01 {KEY_PACKAGE_HEX}", "KeyPackageResult: trailing bytes"),
        (KeyPackageResult, "00", "KeyPackageResult.key_package.version: truncated"),
        (KeyPackageBundleResponse, "03 01 02 03", "KeyPackageBundleResponse.results.2.status: value not allowed"),
        (SendResult, f"02 {ACCEPTED_HEX}", "SendResult.status: value not allowed"),
        (SendResult, f"01 {ACCEPTED_HEX}", "SendResult: trailing bytes"),
        (SendResult, "00 02 7b7d", "SendResult.outcome.counter: truncated"),
        (Frame, "00000001 00", "Frame.type: value not allowed"),
        (Frame, "00000001 0c", "Frame.type: value not allowed"),
        (Frame, "00000001 ff", "Frame.type: value not allowed"),
        (Frame, "00000001 04 07 00000000000000", "Frame.body.welcome_ids.0: truncated"),
        (SendRequest, f"{APPLICATION_HEX} {KEY_HEX} {NEXT_HEX} 00 00", "SendRequest: trailing bytes"),
        (SendRequest, f"{COMMIT_HEX} {KEY_HEX}", "SendRequest.commit_data.next_partition_key: truncated"),
        (SendRequest, f"{WELCOME_HEX} {KEY_HEX}", "SendRequest.commit_data: no such case"),
        (SendRequest, f"{INFO_HEX} {KEY_HEX} {NEXT_HEX} 00 00", "SendRequest.commit_data: no such case"),
        (Message, f"{APPLICATION_HEX} {MASK_HEX} 00", "Message: trailing bytes"),
        (Message, COMMIT_HEX, "Message.commit.next_partition_key: truncated"),
        (Message, WELCOME_HEX, "Message.commit: no such case"),
    ],
)
def test_a_case_that_does_not_match_the_earlier_field_is_refused(cls: type[Any], octets: str, error: str) -> None:
    assert refusal(cls, octets) == error


@pytest.mark.parametrize(
    "value",
    [
        SendRequest(APPLICATION, KEY, BARE_DATA),
        SendRequest(COMMIT, KEY, None),
        SendRequest(WELCOME, KEY, None),
        KeyPackageResult(KeyPackageStatus.REFUSED, KEY_PACKAGE),
        KeyPackageResult(KeyPackageStatus.OK, None),
        SendResult(SendStatus.REFUSED, ACCEPTED),
        SendResult(SendStatus.ACCEPTED, b"{}"),
        Frame(1, FrameType.STOCK, b"{}"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_case_that_does_not_match_the_earlier_field_is_not_written(value: Any) -> None:
    with pytest.raises((ValueError, TypeError, AttributeError)):
        encode(value)


# --- places and values --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "octets", "error"),
    [
        (SendRequest, f"{COMMIT_HEX} {KEY_HEX} {NEXT_HEX} 01", "SendRequest.commit_data.group_info.version: truncated"),
        (SendRequest, f"{COMMIT_HEX} {KEY_HEX} {NEXT_HEX}", "SendRequest.commit_data.group_info: truncated"),
        (
            SendRequest,
            f"{COMMIT_HEX} {KEY_HEX} {NEXT_HEX} 02",
            "SendRequest.commit_data.group_info: presence octet is neither 0 nor 1",
        ),
        (
            Frame,
            f"00000001 03 {A_HEX} 405d {SAID_HEX} {COMMIT_HEX} {KEY_HEX} {NEXT_HEX} 00 00",
            "Frame.body.requests.1.commit_data.welcome_data: truncated",
        ),
        (CommitData, f"{NEXT_HEX} 00 01 {WELCOME_HEX} 01 41", "CommitData.welcome_data.service_providers.0: truncated"),
        (WelcomeData, f"{WELCOME_HEX} 02 01 41", "WelcomeData.service_providers.0: value not allowed"),
        (
            WelcomeData,
            f"{WELCOME_HEX} 0c 01 61 09 3132372e302e302e31",
            "WelcomeData.service_providers.1: value not allowed",
        ),
        (WelcomeInitRequest, "4042 4041" + "61" * 65, "WelcomeInitRequest.key_package_refs.0: truncated"),
        (WelcomeInitRequest, "4043 4041" + "61" * 65, "WelcomeInitRequest.key_package_refs.0: longer than 64 octets"),
        (SendResponse, f"00000005 0000000000000000 1f {'00' * 31}", "SendResponse.partition: value not allowed"),
        (
            SendResponse,
            f"00000005 0000000000000000 {MASK_HEX} 01 01 00",
            "SendResponse.earlier_commits.0: value not allowed",
        ),
        (PushResponse, "05 00000004 ff", "PushResponse.next_counters.1: truncated"),
        (CreateGroupRequest, "4002 6731 0001 0001", "CreateGroupRequest.group_id: length is not in its shortest form"),
        (GroupInfoResponse, f"{INFO_HEX} 01 03 00 00", "GroupInfoResponse.ratchet_tree: truncated"),
        (
            ExternalJoinRequest,
            f"{JOIN_HEX} {KEY_HEX[2:]}",
            "ExternalJoinRequest.commit_data.next_partition_key: truncated",
        ),
        (PushRequest, f"05 {GROUP_HEX} 01 00", "PushRequest.epochs.0.masked_partition_key: value not allowed"),
        (
            Epoch,
            f"2b {APPLICATION_HEX} {APPLICATION_HEX[:-2]}",
            "Epoch.messages.1.message.message.ciphertext: truncated",
        ),
    ],
)
def test_an_error_names_its_place(cls: type[Any], octets: str, error: str) -> None:
    assert refusal(cls, octets) == error


@pytest.mark.parametrize("size", [32, 48, 64])
def test_a_partition_is_named_by_a_mask_of_any_suite(size: int) -> None:
    mask = MaskedPartitionKey(bytes(size))
    response = attrs.evolve(ACCEPTED, partition=mask, earlier_commits=(mask, mask))  # type: ignore[misc]
    assert decode(SendResponse, encode(response)) == response


def test_forwarded_objects_are_kept_as_received() -> None:
    octets = bytes.fromhex(f"{JOIN_HEX} {KEY_HEX} {FULL_DATA_HEX}")
    request = decode(SendRequest, octets)
    assert request.message.encoded == bytes.fromhex(JOIN_HEX)
    assert request.commit_data is not None
    assert request.commit_data.group_info is not None
    assert request.commit_data.group_info.encoded == bytes.fromhex(INFO_HEX)
    assert request.commit_data.welcome_data is not None
    assert request.commit_data.welcome_data.welcome.encoded == bytes.fromhex(WELCOME_HEX)
    assert decode(KeyPackageResponse, bytes.fromhex(KEY_PACKAGE_HEX)).key_package == bytes.fromhex(KEY_PACKAGE_HEX)


def test_a_ratchet_tree_is_kept_unparsed() -> None:
    for tree in (b"\0", b"\3\xff\xff\xff", b"\x40\x40" + bytes(64)):
        response = decode(GroupInfoResponse, INFO.encoded + b"\1" + tree)
        assert response.ratchet_tree == tree
        assert encode(response) == INFO.encoded + b"\1" + tree


def test_neither_a_record_nor_an_error_shows_a_key() -> None:
    octets = COMMIT.encoded + b"hunter2 hunter2 " * 2 + b"\0\0"
    assert "hunter2" not in repr(decode(SendRequest, octets))
    for refused in (*(octets[:size] for size in range(len(octets))), octets[:-1] + b"\2", octets + b"hunter2"):
        with pytest.raises(WireError) as caught:
            decode(SendRequest, refused)
        assert "hunter2" not in f"{caught.value} {caught.value!r}"


# --- structs made of stored octets --------------------------------------------------------------------------------


def parts(epoch: PushedEpoch) -> list[bytes]:
    stored = [assembled(message) for message in epoch.epoch.messages]
    return pushed_epoch_parts(epoch.group_id, epoch.masked_partition_key, epoch.counter, epoch.opening, stored)


def assembled(value: object) -> bytes:
    """Return the encoding of a struct, made of its stored octets."""
    match value:
        case Message(message, None):
            return encode_message(message.encoded, None, None)
        case Message(message, CommitHint(key, info)):
            return encode_message(message.encoded, key, None if info is None else info.encoded)
        case Epoch(messages):
            return encode_epoch(map(assembled, messages))
        case ReceiveResponse(epoch, hints):
            made = [(hint.masked_partition_key, assembled(hint.epoch)) for hint in hints]
            return encode_receive_response(assembled(epoch), made)
        case PushedEpoch():
            return b"".join(parts(value))
        case PushRequest(epochs):
            return encode_push_request(map(parts, epochs))
        case Frame(body=Messages(hub, epoch)):
            return encode_messages_frame(hub, parts(epoch))
    raise NotImplementedError


ASSEMBLED = (Message, Epoch, ReceiveResponse, PushedEpoch, PushRequest)


@pytest.mark.parametrize(
    ("value", "octets"),
    [(value, octets) for value, octets in EXAMPLES if isinstance(value, ASSEMBLED)],
    ids=[name for name, (value, _) in zip(NAMES, EXAMPLES, strict=True) if isinstance(value, ASSEMBLED)],
)
def test_a_struct_made_of_stored_octets_is_as_the_notation_says(value: object, octets: str) -> None:
    assert assembled(value) == bytes.fromhex(octets)


@pytest.mark.parametrize("cls", ASSEMBLED)
@a_few
@given(data=st.data())
def test_a_struct_made_of_stored_octets_is_as_its_codec_writes_it(cls: type[Any], data: st.DataObject) -> None:
    value = data.draw(values(codec(cls)))
    assert assembled(value) == encode(value)


@a_few
@given(values(codec(Messages)))
def test_a_messages_frame_made_of_parts_is_as_its_codec_writes_it(body: Messages) -> None:
    frame = Frame(0, FrameType.MESSAGES, body)
    assert assembled(frame) == encode(frame)


@a_few
@given(st.lists(values(codec(SendResult)), max_size=4))
def test_results_of_a_batch_are_as_their_codec_writes_them(results: list[SendResult]) -> None:
    assert encode_send_results([each.outcome for each in results]) == SEND_RESULTS.encode(tuple(results))


@pytest.mark.parametrize(
    ("size", "length"), [(0, "00"), (63, "3f"), (64, "4040"), (16383, "7fff"), (16384, "80004000")]
)
def test_a_struct_made_of_long_parts_has_the_right_lengths(size: int, length: str) -> None:
    block = bytes.fromhex(length) + bytes(size)
    assert encode_epoch([bytes(size)]) == block
    made = pushed_epoch_parts(GroupId(b"g"), MaskedPartitionKey(bytes(32)), Counter(0), None, [bytes(size)])
    assert b"".join(made) == b"\1g" + b"\x20" + bytes(32) + bytes(4) + b"\0" + block
    assert encode_push_request([[bytes(size)]]) == block


def _vectors(cls: type[Any]) -> Iterator[tuple[str, int]]:
    """Yield name and bound of each vector of a struct."""
    for field in attrs.fields(cls):
        by = field.metadata.get("wire")
        most = getattr(by, "_most", None)
        if most is not None:
            yield f"{cls.__name__}.{field.name}", most


def test_every_vector_has_a_bound_on_its_items() -> None:
    structs = [cls for cls in vars(messages).values() if isinstance(cls, type) and attrs.has(cls)]
    bounds = dict(found for cls in structs for found in _vectors(cls))
    assert len(bounds) > 15
    assert max(bounds.values()) <= 1 << 18
