from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimids.ohttp import bhttp
from mimids.ohttp.bhttp import Interim, MessageLimits, Request, Response
from mimids.wire import varint
from mimids.wire.codec import WireError
from tests.support.ohttp_strategies import REQUESTS, RESPONSES, Framer

Message = Request | Response
MESSAGES = st.one_of(REQUESTS, RESPONSES)
KINDS = pytest.mark.parametrize("indeterminate", [False, True], ids=["known", "indeterminate"])

POST = Request("POST", "https", "b.example", "/x?y", ((b"a", b"b"),), b"body", ((b"t", b"u"),))
POST_KNOWN = b"\0\4POST\5https\x09b.example\4/x?y" + b"\4\1a\1b" + b"\4body" + b"\4\1t\1u"
POST_INDETERMINATE = b"\2\4POST\5https\x09b.example\4/x?y" + b"\1a\1b\0" + b"\4body\0" + b"\1t\1u\0"
HINTED = Response(200, ((b"a", b""),), b"ok", (), (Interim(103, ((b"link", b"</x>"),)), Interim(102)))
HINTED_KNOWN = b"\1\x40\x67\x0a\4link\4</x>" + b"\x40\x66\0" + b"\x40\xc8" + b"\3\1a\0" + b"\2ok" + b"\0"
HINTED_INDETERMINATE = b"\3\x40\x67\4link\4</x>\0" + b"\x40\x66\0" + b"\x40\xc8" + b"\1a\0\0" + b"\2ok\0" + b"\0"


def encode(message: Message, *, indeterminate: bool) -> bytes:
    if isinstance(message, Request):
        return bhttp.encode_request(message, indeterminate=indeterminate)
    return bhttp.encode_response(message, indeterminate=indeterminate)


def decode_as(kind: type[Message], octets: bytes, limits: MessageLimits = bhttp.DEFAULT_LIMITS) -> Message:
    return bhttp.decode_request(octets, limits) if kind is Request else bhttp.decode_response(octets, limits)


@pytest.mark.parametrize(
    ("message", "known", "indeterminate"),
    [(POST, POST_KNOWN, POST_INDETERMINATE), (HINTED, HINTED_KNOWN, HINTED_INDETERMINATE)],
    ids=["request", "response"],
)
def test_both_framings_are_those_of_the_rfc(message: Message, known: bytes, indeterminate: bytes) -> None:
    assert encode(message, indeterminate=False) == known
    assert encode(message, indeterminate=True) == indeterminate
    assert decode_as(type(message), known) == decode_as(type(message), indeterminate) == message


@KINDS
@given(message=MESSAGES)
def test_an_encoded_message_decodes_to_the_same_value(message: Message, indeterminate: bool) -> None:
    octets = encode(message, indeterminate=indeterminate)
    assert octets == Framer(indeterminate=indeterminate).frame(message).octets
    assert decode_as(type(message), octets) == message


@KINDS
@given(message=MESSAGES, seed=st.integers(0, 1000), padding=st.integers(0, 40))
def test_every_framing_of_a_message_decodes_to_it_padded_or_not(
    message: Message, indeterminate: bool, seed: int, padding: int
) -> None:
    framed = Framer(indeterminate=indeterminate, seed=seed).frame(message)
    assert decode_as(type(message), framed.octets) == message
    for size in {framed.fields, framed.content, framed.trailers, len(framed.octets)}:
        assert decode_as(type(message), framed.octets[:size] + bytes(padding)) == framed.cut(message, size)


@KINDS
@given(message=MESSAGES.filter(lambda message: len(message.content) < 100), seed=st.integers(0, 1000))
def test_a_message_may_end_before_a_section_and_nowhere_else(message: Message, indeterminate: bool, seed: int) -> None:
    framed = Framer(indeterminate=indeterminate, seed=seed).frame(message)
    for size in range(len(framed.octets)):
        meaning = framed.cut(message, size)
        if meaning is not None:
            assert decode_as(type(message), framed.octets[:size]) == meaning
        else:
            with pytest.raises(WireError):
                decode_as(type(message), framed.octets[:size])


@given(message=REQUESTS, content=st.binary(max_size=100), other=REQUESTS)
def test_a_request_with_a_head_that_was_decoded_before_decodes_to_itself(
    message: Request, content: bytes, other: Request
) -> None:
    again = [
        attrs.evolve(message, content=content),
        attrs.evolve(message, trailers=()),
        attrs.evolve(message, trailers=((b"t", b"u"),)),
        attrs.evolve(message, fields=(*message.fields, (b"last", b""))),
        attrs.evolve(other, fields=message.fields),
    ]
    for request in (message, *again, message):
        octets = bhttp.encode_request(request)
        assert bhttp.decode_request(octets) == bhttp.decode_request(octets + b"\0\0") == request
        with pytest.raises(WireError):
            bhttp.decode_request(octets + b"\1")


@KINDS
@pytest.mark.parametrize("message", [POST, HINTED], ids=["request", "response"])
def test_padding_that_is_not_zero_is_refused(message: Message, indeterminate: bool) -> None:
    with pytest.raises(WireError, match="padding is not zero"):
        decode_as(type(message), encode(message, indeterminate=indeterminate) + b"\0\0\1")


@pytest.mark.parametrize("kind", [Request, Response])
@given(octets=st.one_of(st.binary(max_size=60), st.binary(max_size=60).map(lambda tail: b"\2\1G\1h\0\1/" + tail)))
def test_any_octets_are_a_message_or_a_wire_error(kind: type[Message], octets: bytes) -> None:
    try:
        message = decode_as(kind, octets)
    except WireError:
        return
    assert decode_as(kind, encode(message, indeterminate=False)) == message


@KINDS
@given(message=MESSAGES.filter(lambda message: len(message.content) < 100), data=st.data())
def test_a_corrupted_message_is_a_message_or_a_wire_error(
    message: Message, indeterminate: bool, data: st.DataObject
) -> None:
    octets = bytearray(encode(message, indeterminate=indeterminate))
    for _ in range(data.draw(st.integers(1, 4))):
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    try:
        again = decode_as(type(message), bytes(octets))
    except WireError:
        return
    assert decode_as(type(message), encode(again, indeterminate=indeterminate)) == again


@pytest.mark.parametrize("framing", [0, 1, 2, 3, 4, 63, 64, 2**62 - 1])
def test_only_two_framings_make_a_request_and_two_others_a_response(framing: int) -> None:
    first = varint.quic(framing)
    for kind, accepted, rest in [
        (Request, (0, 2), b"\3GET\5https\0\1/"),
        (Response, (1, 3), b"\x40\xc8"),
    ]:
        if framing in accepted:
            decode_as(kind, first + rest)
        else:
            with pytest.raises(WireError, match="not the framing indicator of a "):
                decode_as(kind, first + rest)


HUGE = [bytes.fromhex(length) for length in ("7fff", "bfffffff", "ffffffffffffffff", "c000000100000000")]


@pytest.mark.parametrize("length", HUGE, ids=bytes.hex)
@pytest.mark.parametrize(
    "before",
    [
        b"\0",
        b"\0\3GET\5https\0\1/",
        b"\0\3GET\5https\0\1/\0",
        b"\0\3GET\5https\0\1/\0\0",
        b"\0\3GET\5https\0\1/\x09",
        b"\2\3GET\5https\0\1/",
        b"\2\3GET\5https\0\1/\1a",
        b"\2\3GET\5https\0\1/\0",
        b"\2\3GET\5https\0\1/\0\1a",
    ],
)
def test_a_length_beyond_the_message_is_refused_before_anything_is_read(before: bytes, length: bytes) -> None:
    with pytest.raises(WireError, match="truncated"):
        bhttp.decode_request(before + length + b"12345678")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"", b""),
        (b"a b", b""),
        (b"a:", b""),
        (b":", b""),
        (b"\xe9", b""),
        (b"a\r", b""),
        (b"a", b" b"),
        (b"a", b"b\t"),
        (b"a", b" "),
        (b"a", b"b\rc"),
        (b"a", b"b\nc"),
        (b"a", b"b\0c"),
        (b":path", b"/"),
        (b":status", b"200"),
    ],
)
def test_fields_that_http_does_not_allow_make_a_message_invalid(name: bytes, value: bytes) -> None:
    line = varint.quic(len(name)) + name + varint.quic(len(value)) + value
    octets = b"\1\x40\xc8" + varint.quic(len(line)) + line
    with pytest.raises(WireError) as refusal:
        bhttp.decode_response(octets)
    assert refusal.value.path[0] == "Response"
    with pytest.raises(ValueError, match="field"):
        Response(200, ((name, value),))


def test_pseudo_fields_come_first_and_never_in_trailers() -> None:
    ordinary, pseudo = (b"a", b""), (b":x", b"")
    assert Response(200, (pseudo, ordinary)).field(b":x") == b""
    with pytest.raises(ValueError, match="out of place"):
        Response(200, (ordinary, pseudo))
    with pytest.raises(ValueError, match="out of place"):
        Response(200, (), b"", (pseudo,))


@pytest.mark.parametrize("octets", [b"\xe9", b"obs\xfftext", b"a  \t b", b"\x01"])
def test_field_values_may_hold_what_http_allows(octets: bytes) -> None:
    message = Response(200, ((b"a", octets),))
    assert bhttp.decode_response(bhttp.encode_response(message)) == message


@pytest.mark.parametrize(
    "control",
    [
        ("", "https", "", "/"),
        ("G T", "https", "", "/"),
        ("GET", "", "", "/"),
        ("GET", "1http", "", "/"),
        ("GET", "https", "user@host", "/"),
        ("GET", "https", "a b", "/"),
        ("GET", "https", "", ""),
        ("GET", "https", "", "x"),
        ("GET", "https", "", "*"),
        ("GET", "https", "", "/\r\n"),
        ("GET", "https", "", "/\x7f"),
        ("CONNECT", "", "host:1", "/"),
    ],
)
def test_control_data_that_http_does_not_allow_makes_a_request_invalid(control: tuple[str, str, str, str]) -> None:
    with pytest.raises(ValueError, match="not allowed"):
        Request(*control)
    octets = b"\0" + b"".join(varint.quic(len(text)) + text.encode() for text in control)
    with pytest.raises(WireError, match="Request: "):
        bhttp.decode_request(octets)


def test_control_data_outside_ascii_is_refused() -> None:
    with pytest.raises(WireError, match=r"Request\.path: not ASCII"):
        bhttp.decode_request(b"\0\3GET\5https\0\3/\xc3\xa9")


@pytest.mark.parametrize("control", [("OPTIONS", "https", "h", "*"), ("CONNECT", "", "h:1", ""), ("GET", "x", "", "")])
def test_unusual_control_data_is_accepted(control: tuple[str, str, str, str]) -> None:
    message = Request(*control)
    assert bhttp.decode_request(bhttp.encode_request(message)) == message


@pytest.mark.parametrize("status", [0, 99, 600, 1000, 2**62 - 1])
def test_a_status_outside_its_range_is_refused(status: int) -> None:
    with pytest.raises(WireError, match="status not allowed"):
        bhttp.decode_response(b"\1" + varint.quic(status))
    with pytest.raises(ValueError, match="status"):
        Response(status)


def test_a_response_cannot_end_with_an_informational_one() -> None:
    for octets in (b"\1\x40\x67", b"\1\x40\x67\0", b"\3\x40\x67\0"):
        with pytest.raises(WireError, match="truncated"):
            bhttp.decode_response(octets)


SMALL = MessageLimits(control=8, section=16, fields=2, content=10, chunks=3, interim=1)
FITTING = Response(200, ((b"a", b"1234567"), (b"b", b"1234567")), b"0123456789", (), (Interim(100),))


@KINDS
def test_limits_hold_in_both_framings(indeterminate: bool) -> None:
    def decode(message: Message) -> Message:
        return decode_as(type(message), encode(message, indeterminate=indeterminate), SMALL)

    assert decode(FITTING) == FITTING
    assert decode(Request("12345678", "h", "", "/")).content == b""
    for larger, reason in [
        (attrs.evolve(FITTING, content=b"0123456789a"), "longer than 10"),
        (attrs.evolve(FITTING, fields=((b"a", b"1234567"), (b"b", b"12345678"))), "longer than"),
        (attrs.evolve(FITTING, fields=((b"a", b""),) * 3), "more than 2 field lines"),
        (attrs.evolve(FITTING, trailers=((b"a", b""),) * 3), "more than 2 field lines"),
        (attrs.evolve(FITTING, interim=(Interim(100), Interim(100))), "more than 1"),
    ]:
        with pytest.raises(WireError, match=reason):
            decode(larger)
    with pytest.raises(WireError, match=r"Request\.method: longer than 8"):
        decode(Request("123456789", "h", "", "/"))


def test_chunks_are_limited_in_number_and_in_total_size() -> None:
    start = b"\3\x40\xc8\0"
    assert bhttp.decode_response(start + b"\1a\4bcde\5fghij\0", SMALL) == Response(200, (), b"abcdefghij")
    with pytest.raises(WireError, match="more than 3 chunks"):
        bhttp.decode_response(start + b"\1a\1b\1c\1d\0", SMALL)
    with pytest.raises(WireError, match="longer than 5 octets"):
        bhttp.decode_response(start + b"\5abcde\6fghijk\0", SMALL)


def test_fields_are_found_in_any_case_and_combined() -> None:
    message = Response(200, ((b"Vary", b"a"), (b"vary", b"b"), (b"cookie", b"c=1"), (b"Cookie", b"d=2")))
    assert message.field(b"vary") == b"a, b"
    assert message.field(b"cookie") == b"c=1; d=2"
    assert message.field(b"date") is None


def test_an_error_names_the_place_and_never_the_octets() -> None:
    with pytest.raises(WireError) as refusal:
        bhttp.decode_request(b"\0\3GET\5https\0\1/\x20secret")
    assert str(refusal.value) == "Request.fields: truncated"
