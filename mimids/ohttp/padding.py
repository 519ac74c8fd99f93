"""Padding to size classes, which hides the exact length of requests and responses from the relay.

A Binary HTTP message is padded with zeros (RFC 9292 section 3.8) to the next size class before it is encrypted, so that
an observer learns only the class. A class is a power of two up to 64 KiB, and above that a multiple of 64 KiB. The
smallest class of requests is 1 KiB: it holds a KeyPackageRequest with a long token, or a bundle of a few requests. The
smallest class of responses is 2 KiB: it holds a KeyPackage of the common cipher suites (300 to 1,000 octets),
`exhausted`, and every refusal. The smallest class for the answer to a bundle has room for one such KeyPackage for each
request.
"""

from __future__ import annotations

from typing import Final

SMALLEST_REQUEST: Final = 1024
SMALLEST_RESPONSE: Final = 2048
STEP: Final = 65536  # larger classes are multiples of this: doubling would waste too much


def size_class(size: int, smallest: int) -> int:
    """Return the smallest size class that holds `size` octets."""
    if size > STEP:
        return -(-size // STEP) * STEP
    return max(smallest, 1 << (size - 1).bit_length() if size else 1)


def pad_request(message: bytes) -> bytes:
    """Pad an encoded Binary HTTP request to its size class."""
    return message.ljust(size_class(len(message), SMALLEST_REQUEST), b"\0")


def pad_response(message: bytes, results: int = 1) -> bytes:
    """Pad an encoded Binary HTTP response to its size class, or to that of `results` KeyPackages if that is larger.

    The size of a bundle's answer then does not show how many of its requests got a KeyPackage.
    """
    return message.ljust(size_class(max(len(message), results * SMALLEST_RESPONSE), SMALLEST_RESPONSE), b"\0")
