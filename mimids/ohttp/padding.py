"""Padding to size classes, which hides the exact length of requests and responses from the relay.

A Binary HTTP message is padded with zeros (RFC 9292 section 3.8) to the next size class before it is encrypted, so that
an observer learns only the class. A class is a power of two up to 64 KiB, and above that a multiple of 64 KiB. The
smallest is 1 KiB for requests, which holds a KeyPackageRequest with a long token or a bundle of a few. It is 2 KiB for
responses, and a KeyPackage of the common cipher suites (300 to 1,000 octets), `exhausted` and every refusal have it.
"""

from __future__ import annotations

from typing import Final

SMALLEST_REQUEST: Final = 1024
SMALLEST_RESPONSE: Final = 2048
STEP: Final = 65536  # above this, classes are multiples of it: doubling would waste too much


def size_class(size: int, smallest: int) -> int:
    """Return the smallest size class that holds `size` octets."""
    if size > STEP:
        return -(-size // STEP) * STEP
    return max(smallest, 1 << (size - 1).bit_length() if size else 1)


def pad_request(message: bytes) -> bytes:
    """Pad an encoded Binary HTTP request to its size class."""
    return message.ljust(size_class(len(message), SMALLEST_REQUEST), b"\0")


def pad_response(message: bytes) -> bytes:
    """Pad an encoded Binary HTTP response to its size class."""
    return message.ljust(size_class(len(message), SMALLEST_RESPONSE), b"\0")
