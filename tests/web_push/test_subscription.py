"""What a device may register, and what is refused without being repeated."""

from __future__ import annotations

import pytest

from mimids.web_push.subscription import ENDPOINT_CHARS, is_allowed, make_subscription, origins, parse_endpoint
from tests.support.push_keys import browser

POINT = browser().subscription.p256dh


@pytest.mark.parametrize(
    ("url", "origin", "path"),
    [
        ("https://fcm.googleapis.com/fcm/send/abc:def", "https://fcm.googleapis.com", "/fcm/send/abc:def"),
        ("https://Push.Example:443/x?a=b%20c", "https://push.example", "/x?a=b%20c"),
        ("https://push.example:8443/x", "https://push.example:8443", "/x"),
        ("https://push.example", "https://push.example", "/"),
    ],
)
def test_an_endpoint_is_taken_apart(url: str, origin: str, path: str) -> None:
    endpoint = parse_endpoint(url)
    assert (endpoint.origin, endpoint.path) == (origin, path)
    assert path not in repr(endpoint) or path == "/"


@pytest.mark.parametrize(
    "url",
    [
        "http://push.example/x",
        "https://user@push.example/x",
        "https://push.example/x#fragment",
        "https://push.example/a b",
        "https://push.example/a\r\nx: y",
        "https://push.exämple/x",
        "https://push..example/x",
        "https://-push.example/x",
        "https://[::1]/x",
        "https://push.example:0/x",
        "https://push.example:65536/x",
        "https://push.example?x",
        "https:///x",
        "",
        "https://push.example/" + "x" * 2048,
        "https://" + "a." * 127 + "example/x",
    ],
)
def test_any_other_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="endpoint") as refusal:
        parse_endpoint(url)
    assert not url or url not in str(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://push.example/".ljust(ENDPOINT_CHARS, "x"),
        f"https://{'.'.join(['a' * 63] * 3 + ['b' * 61])}/x",
        "https://push.example:1/x",
        "https://push.example:65535/x",
    ],
)
def test_an_endpoint_of_the_largest_size_and_any_port_is_taken(url: str) -> None:
    assert url.startswith(parse_endpoint(url).origin)


@pytest.mark.parametrize("url", ["https://127.0.0.1/", "https://localhost/", "https://push.example:8443/"])
def test_addresses_short_names_and_other_ports_are_for_listed_origins_only(url: str) -> None:
    endpoint = parse_endpoint(url)
    assert not is_allowed(endpoint, ())
    assert not is_allowed(endpoint, origins(["https://other.example"]))
    assert is_allowed(endpoint, origins([url, "https://[::1]:8443"]))


@pytest.mark.parametrize("url", ["https://push.example/x", "https://push.1.example/x"])
def test_a_name_at_port_443_is_allowed(url: str) -> None:
    assert is_allowed(parse_endpoint(url), ())


def test_a_listed_origin_is_written_as_endpoints_have_it_or_stays_as_it_is() -> None:
    listed = ["https://PUSH.example:443", "https://[::1]:8443"]
    assert origins(listed) == {"https://push.example", "https://[::1]:8443"}


@pytest.mark.parametrize(
    ("p256dh", "auth", "fault"),
    [
        (b"\4" + bytes(64), bytes(16), "p256dh"),
        (b"\2" + POINT[1:33], bytes(16), "p256dh"),
        (b"\6" + POINT[1:], bytes(16), "p256dh"),
        (b"", bytes(16), "p256dh"),
        (POINT, bytes(15), "auth"),
    ],
    ids=["no point", "compressed", "hybrid", "nothing", "short secret"],  # POINT is another one in each run
)
def test_keys_that_no_browser_makes_are_refused(p256dh: bytes, auth: bytes, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        make_subscription("https://push.example/x", p256dh, auth)
