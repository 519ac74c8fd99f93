"""Push subscriptions of devices: the endpoint at a push service, and the keys with which a push is encrypted."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Final

import attrs
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey

POINT_OCTETS: Final = 65  # of an uncompressed P-256 point (RFC 8291 section 3.1)
AUTH_OCTETS: Final = 16  # RFC 8291 section 3.2
ENDPOINT_CHARS: Final = 2048
HOST_CHARS: Final = 253

# Exactly what an endpoint may look like: no user, no fragment, and nothing that could end a line of HTTP.
_ENDPOINT: Final = re.compile(r"https://(?P<host>[A-Za-z0-9.-]+)(?::(?P<port>[0-9]{1,5}))?(?P<path>/[!-\"$-~]*)?")
_LABEL: Final = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")


@attrs.frozen
class EndpointUrl:
    """The parsed URL of a subscription. The URL is a secret, so `repr` shows only the push service."""

    origin: str  # of the push service: https://host, or https://host:port if the port is not 443
    host: str
    port: int
    path: str = attrs.field(repr=False)

    @property
    def authority(self) -> str:
        """Return the host, with the port unless it is 443."""
        return self.origin.removeprefix("https://")


@attrs.frozen
class Subscription:
    """The push subscription of a device; `p256dh` is its public key, `auth` is the secret that it shares with us."""

    endpoint: EndpointUrl
    p256dh: bytes = attrs.field(repr=False)
    auth: bytes = attrs.field(repr=False)


def parse_endpoint(text: str) -> EndpointUrl:
    """Parse the URL of a subscription; raise `ValueError`, which says what is wrong and repeats nothing of the URL."""
    found = _ENDPOINT.fullmatch(text) if len(text) <= ENDPOINT_CHARS else None
    if found is None:
        raise ValueError(f"endpoint: an https URL of at most {ENDPOINT_CHARS} characters of ASCII is needed")
    host, port = found["host"].lower(), int(found["port"] or 443)
    if len(host) > HOST_CHARS or not all(map(_LABEL.fullmatch, host.split("."))) or not 0 < port <= 65_535:
        raise ValueError("endpoint: the host or the port is not valid")
    origin = f"https://{host}" if port == 443 else f"https://{host}:{port}"
    return EndpointUrl(origin, host, port, found["path"] or "/")


def origins(urls: Iterable[str]) -> frozenset[str]:
    """Return the origins of URLs as `EndpointUrl.origin` writes them.

    An origin that no endpoint can have stays as it is.
    """
    found = set()
    for url in urls:
        try:
            found.add(parse_endpoint(url).origin)
        except ValueError:
            found.add(url)
    return frozenset(found)


def is_allowed(endpoint: EndpointUrl, listed: Collection[str]) -> bool:
    """Tell whether a device may name this endpoint: it has a host name and port 443, or the operator listed its origin.

    If the origin is not listed, the addresses of the host are checked when we connect.
    """
    if endpoint.origin in listed:
        return True
    labels = endpoint.host.split(".")
    return endpoint.port == 443 and len(labels) > 1 and not labels[-1].isdigit()  # an IPv4 address ends in digits


def make_subscription(endpoint: str, p256dh: bytes, auth: bytes) -> Subscription:
    """Return a subscription; raise `ValueError` if the endpoint or a key is not valid."""
    if len(p256dh) != POINT_OCTETS:
        raise ValueError(f"p256dh: {POINT_OCTETS} octets are needed, an uncompressed point of P-256")
    try:
        EllipticCurvePublicKey.from_encoded_point(SECP256R1(), p256dh)
    except ValueError:
        raise ValueError("p256dh: this is not a point of P-256") from None
    if len(auth) != AUTH_OCTETS:
        raise ValueError(f"auth: {AUTH_OCTETS} octets are needed")
    return Subscription(parse_endpoint(endpoint), p256dh, auth)
