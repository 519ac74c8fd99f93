from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mimids.ohttp import bhttp
from mimids.ohttp.padding import (
    SMALLEST_REQUEST,
    SMALLEST_RESPONSE,
    STEP,
    pad_request,
    pad_response,
    size_class,
)
from tests.support.ohttp_strategies import REQUESTS, RESPONSES, Framer


@given(size=st.integers(0, 10 * STEP), smallest=st.sampled_from([SMALLEST_REQUEST, SMALLEST_RESPONSE]))
def test_a_size_class_holds_its_sizes_and_is_its_own_class(size: int, smallest: int) -> None:
    padded = size_class(size, smallest)
    assert padded >= max(size, smallest)
    assert padded < max(2 * size, smallest + 1)
    assert size_class(padded, smallest) == padded
    assert size_class(size + 1, smallest) >= padded


def test_there_are_few_classes() -> None:
    classes = {size_class(size, SMALLEST_RESPONSE) for size in range(3 * STEP + 1)}
    assert sorted(classes) == [2048, 4096, 8192, 16384, 32768, 65536, 2 * STEP, 3 * STEP]
    assert {size_class(size, SMALLEST_REQUEST) for size in range(2049)} == {1024, 2048}


@given(REQUESTS, RESPONSES, st.booleans())
def test_padding_does_not_change_the_decoded_message(
    request: bhttp.Request, response: bhttp.Response, indeterminate: bool
) -> None:
    framer = Framer(indeterminate=indeterminate)
    padded_request, padded_response = (
        pad_request(framer.frame(request).octets),
        pad_response(framer.frame(response).octets),
    )
    assert bhttp.decode_request(padded_request) == request
    assert bhttp.decode_response(padded_response) == response
    assert len(padded_response) == size_class(len(padded_response), SMALLEST_RESPONSE)


def test_a_key_package_and_every_refusal_have_one_size() -> None:
    media_type = (b"content-type", b"application/mimi-ds")
    sizes = {
        len(pad_response(bhttp.encode_response(bhttp.Response(status, (media_type,), bytes(octets)))))
        for status, octets in [(200, 300), (200, 1000), (200, 1900), (400, 120), (403, 150), (404, 0), (503, 200)]
    }
    assert sizes == {SMALLEST_RESPONSE}
