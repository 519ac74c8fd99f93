"""Passes received TLS records to OpenSSL, a few at a time.

OpenSSL works through all that it has been given before it returns. A peer may send each octet of data in a record of
its own, or thousands of KeyUpdates (RFC 8446 section 4.6.3), each of which costs as much time as a small request.
"""

from __future__ import annotations

import ssl
from typing import Final

HEADER_OCTETS: Final = 5  # type, version and length (RFC 8446 section 5.1)
RECORDS_AT_ONCE: Final = 64  # one receive brings fewer records, if they have the usual size
FEW_RECORDS: Final = 4
SMALL_OCTETS: Final = 256


class Records:
    """The records that arrive on one connection; `to` is the memory BIO from which OpenSSL reads them."""

    def __init__(self, to: ssl.MemoryBIO) -> None:
        self._to = to
        self._held = b""
        self._left = 0  # octets of the record that was passed on in part
        # about the records that were passed on last:
        self.are_small = False  # they were many, and small
        self.are_complete = False  # at least one was passed on to its end

    @property
    def are_waiting(self) -> bool:
        """Whether `pass_on` has something to pass on."""
        return len(self._held) >= HEADER_OCTETS

    def add(self, received: bytes) -> None:
        """Add received octets, and pass on the first records. No octets mean the end of the stream."""
        self._held += received
        if received:
            self.pass_on()
        else:
            self._to.write(self._held)
            self._to.write_eof()
            self._held, self.are_complete = b"", True

    def pass_on(self) -> None:
        """Pass on the next records, at most RECORDS_AT_ONCE; the last may be incomplete."""
        held, end = self._held, self._left
        records, begun = 0, self._left > 0
        while records < RECORDS_AT_ONCE and len(held) >= end + HEADER_OCTETS:
            records += 1
            end += HEADER_OCTETS + int.from_bytes(held[end + HEADER_OCTETS - 2 : end + HEADER_OCTETS])
        self.are_small = records > FEW_RECORDS and end < records * SMALL_OCTETS
        self.are_complete = records + begun > (end > len(held))
        self._left = max(0, end - len(held))
        self._to.write(held[:end])
        self._held = held[end:]
