from __future__ import annotations

import pytest

from mimids.errors import Malformed, NotFound
from mimids.http.api.parameters import group_id_in, number_in, partition_in, provider_in, wait_seconds
from mimids.wire.base64url import base64url


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        ("wait=7", 7),
        ('wait="7"', 7),
        ("respond-async, wait = 7", 7),
        ("Wait=7; foo", 7),
        ("wait=99999", 60),
        ("wait=-1", None),
        ("wait=x", None),
        ("waiting=7", None),
        ("", None),
    ],
)
def test_a_client_may_prefer_to_wait_up_to_our_limit(prefer: str, seconds: int | None) -> None:
    assert wait_seconds({"prefer": prefer}, 60) == seconds


def test_without_prefer_there_is_no_wait() -> None:
    assert wait_seconds({}, 60) is None


@pytest.mark.parametrize("size", [32, 48, 64])
def test_a_partition_is_named_by_its_masked_key(size: int) -> None:
    assert partition_in({"partition": base64url(bytes(size))}) == bytes(size)


@pytest.mark.parametrize("text", ["", "x", "?", base64url(bytes(31)), base64url(bytes(33)), "A" * 10_000])
def test_another_partition_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        partition_in({"partition": text})


def test_a_query_may_name_no_partition() -> None:
    assert partition_in({}) is None


def test_a_number_in_a_path_fits_a_row() -> None:
    assert number_in({"id": "9" * 18}, "id") == 10**18 - 1
    for text in ("9" * 19, "-1", "1.0", "\u0663", "x"):
        with pytest.raises(NotFound):
            number_in({"id": text}, "id")


def test_names_in_a_path_are_checked() -> None:
    assert provider_in({"provider": "a.example"}) == "a.example"
    with pytest.raises(NotFound):
        provider_in({"provider": "not a domain"})
    assert group_id_in({"group_id": "Z3JvdXA"}) == b"group"
    with pytest.raises(Malformed):
        group_id_in({"group_id": "?"})
