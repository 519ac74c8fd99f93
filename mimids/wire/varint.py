"""Variable-length integers: the strict encoding of MLS, and the lenient encoding of QUIC and Binary HTTP.

In both encodings, the two highest bits of the first octet give the length of the integer. MLS requires the shortest
form and has at most 30 bits (RFC 9420 section 2.1.2). Binary HTTP accepts any form and has up to 62 bits (RFC 9292
section 3, RFC 9000 section 16). Each encoding has its own functions, so that nobody uses the wrong one.
"""

MLS_MAX = (1 << 30) - 1
QUIC_MAX = (1 << 62) - 1


class VarintError(ValueError):
    """The bytes are not a valid integer: truncated, too long, or not in the shortest form."""


def read_mls(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """Read a minimal 1, 2 or 4 octet integer at `pos`; return it and the position after it."""
    if pos >= end:
        raise VarintError("truncated")
    first = data[pos]
    if first < 0x40:
        return first, pos + 1
    if first < 0x80:
        if pos + 2 > end:
            raise VarintError("truncated")
        value = (first & 0x3F) << 8 | data[pos + 1]
        if value < 0x40:
            raise VarintError("length is not in its shortest form")
        return value, pos + 2
    if first >= 0xC0:
        raise VarintError("length prefix is reserved")
    if pos + 4 > end:
        raise VarintError("truncated")
    value = int.from_bytes(data[pos : pos + 4], "big") & MLS_MAX
    if value < 0x4000:
        raise VarintError("length is not in its shortest form")
    return value, pos + 4


def mls(value: int) -> bytes:
    """Encode `value` (0 to 2**30 - 1) in its shortest form."""
    if value < 0x40:
        return value.to_bytes(1, "big")
    if value < 0x4000:
        return (value | 0x4000).to_bytes(2, "big")
    if value > MLS_MAX:
        raise ValueError("an MLS vector holds at most 2**30 - 1 octets")
    return (value | 0x8000_0000).to_bytes(4, "big")


def read_quic(data: bytes, pos: int, end: int) -> tuple[int, int]:
    """Read a 1, 2, 4 or 8 octet integer at `pos`, minimal or not; return it and the position after it."""
    if pos >= end:
        raise VarintError("truncated")
    size = 1 << (data[pos] >> 6)
    if pos + size > end:
        raise VarintError("truncated")
    value = int.from_bytes(data[pos : pos + size], "big")
    return value & ((1 << (8 * size - 2)) - 1), pos + size


def quic(value: int) -> bytes:
    """Encode `value` (0 to 2**62 - 1) in its shortest form."""
    for bits, size in ((6, 1), (14, 2), (30, 4), (62, 8)):
        if value < 1 << bits:
            return (value | (bits.bit_length() - 3) << (8 * size - 2)).to_bytes(size, "big")
    raise ValueError("a QUIC integer has at most 62 bits")
