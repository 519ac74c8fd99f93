"""Find the end of a message that carries a proposal of unknown type, which RFC 9420 does not delimit.

Stacks disagree: OpenMLS, ts-mls and mls-rs put the body of a custom proposal in one opaque<V>; mls-rs (0.57) sends
SelfRemove as type 0xF003 with an empty body; other types may have any body. But such a message ends with a signature
and, if a member sent it, with a membership tag. Their sizes are known for each cipher suite. In the structures of this
protocol, a message is followed by another message, by a key, or by nothing. So this module looks for a place where a
signature ends and one of these follows.

A sender could build a message that ends at one place in a request and at another in an answer. The server refuses such
a message, because followers would read another message than the hub sequenced.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from mimids.wire import varint

_NEXT: Final = re.compile(rb"(?=\x00\x01\x00[\x01-\x05])")  # the first octets of an MLSMessage
_HEADER_OCTETS: Final = 4  # the size of these first octets
_KEY: Final = 16  # octets of the partition key after the message of a SendRequest
_MASKS: Final = (32, 48, 64)  # octets of the optional masked key after an external proposal
_LOOKED_AT: Final = 1024  # possible beginnings of messages that are examined; more would take long

# Signatures by the size of the suite's membership tag: the fixed sizes (EdDSA), and the largest DER form (ECDSA).
_Sizes = tuple[tuple[int, ...], int]
_BY_TAG: Final[dict[int, _Sizes]] = {32: ((64,), 72), 48: ((), 104), 64: ((114,), 139)}
_UNTAGGED: Final[_Sizes] = ((64, 114), 139)
_TAG_HEADERS: Final = tuple((varint.mls(size), size) for size in _BY_TAG)
_SHORTEST_FIXED: Final = 64  # octets of the shortest signatures that are not DER: Ed25519
_LONGEST_ENDING: Final = 2 + 139 + 2 + 64  # octets of a signature and a membership tag, with their lengths

# The first octets of an `opaque signature<V>` of a fixed size, or of 8 to 139 octets that begin with a SEQUENCE.
_SIGNATURE: Final = re.compile(rb"(?=(?:\x40(?=[\x40\x72]|[\x40-\x8b]\x30)|(?=[\x08-\x3f]\x30))(.))", re.DOTALL)

_BLOCK: Final = 256  # octets in which beginnings of signatures are looked for at once

_OPTIONAL_MASKS: Final = tuple(1 + len(varint.mls(size)) + size for size in _MASKS)


def end_of_message(
    data: bytes, body: int, end: int, *, tagged: bool, declared: int | None, certain: bool = True
) -> int | None:
    """Return where a message with a proposal ends; None if the end is not certain.

    The body of the proposal begins at `body`, and the enclosing structure ends at `end`. With `tagged`, the message has
    a membership tag. `declared` is the offset at which the message ends if the body has the declared layout (opaque<V>
    for an unknown type), or None if the message does not parse with that layout. If `certain` is false, `declared` is
    used only if no signature (with a membership tag behind it, if `tagged`) seems to end at another offset.
    """
    found = _first_end(data, body, end, tagged=tagged, declared=declared, certain=certain)
    if found is None:
        return declared  # the enclosing structure will not parse
    declared = None if declared is None or declared > found else declared - body
    alone = data[body:found]
    for follows in (b"", b"\0\1\0\1", b"\0\1\0\2"):  # the last message of an epoch, or followed by another message
        octets = alone + follows
        # The search above covered all ends but those within the last octets.
        since = max(0, len(alone) - _HEADER_OCTETS + 1)
        first = _first_end(octets, 0, len(octets), tagged=tagged, declared=declared, certain=certain, since=since)
        if first != len(alone):
            return None
    return found


def _first_end(
    data: bytes,
    body: int,
    end: int,
    *,
    tagged: bool,
    declared: int | None,
    certain: bool,
    since: int | None = None,
) -> int | None:
    """Return the first place where the message may end: `declared`, or a place with a signature before it.

    With `since`, ends before that place are ignored.
    """
    since = body if since is None else since
    if declared is not None and not _may_end(data, declared, end):
        declared = None
    signatures = _Signatures(data, max(body, since - _KEY - _LONGEST_ENDING))
    for place in _possible_ends(data, body, end, since):
        if certain and declared is not None and declared <= place:
            break
        if signatures.before(place, tagged=tagged) is not None:
            return place
    return declared


def _may_end(data: bytes, place: int, end: int) -> bool:
    """Tell whether a message may end here, judging by the octets that follow: `_possible_ends` for one place."""
    left = end - place
    if left in (0, _KEY) or _NEXT.match(data, place, end) or _NEXT.match(data, place + _KEY, end):
        return True
    return left == 1 if data[place] == 0 else data[place] == 1 and left in _OPTIONAL_MASKS


def _possible_ends(data: bytes, body: int, end: int, since: int) -> Iterator[int]:
    """Yield the places after which another message, a key, or nothing follows, so that a message may end there."""
    for count, found in enumerate(_NEXT.finditer(data, since, end)):
        if count == _LOOKED_AT:
            return
        yield from (found.start() - _KEY, found.start())
    for size in reversed(_OPTIONAL_MASKS):
        if end - size >= body and data[end - size] == 1:
            yield end - size
    yield end - _KEY
    if end > body and data[end - 1] == 0:
        yield end - 1
    yield end


def may_be_signature(octets: bytes) -> bool:
    """Tell whether octets can be a signature of a known scheme; if not, the message was read in a wrong layout."""
    return len(octets) >= _SHORTEST_FIXED or _is_ecdsa(octets, 0, len(octets))


def signature_before(data: bytes, start: int, end: int, *, tagged: bool) -> int | None:
    """Return the offset of the signature that ends at `end`; None if there is none.

    If `tagged`, the signature is followed by a membership tag, and the tag ends at `end`. A signature that begins
    before `start` is not found.
    """
    return _Signatures(data, start).before(end, tagged=tagged)


class _Signatures:
    """Finds signatures in `data` from `start` on that end at places where the message may end.

    Their beginnings are found block by block and remembered, because thousands of these places may be close together.
    """

    def __init__(self, data: bytes, start: int) -> None:
        self._data = data
        self._start = start
        self._blocks: set[int] = set()  # blocks in which the beginnings were found
        self._begins: dict[int, list[int]] = {}  # beginnings of signatures, by the end of the signature

    def before(self, end: int, *, tagged: bool) -> int | None:
        """Find the signature before `end`, as `signature_before` does."""
        if not tagged:
            return self._ending_at(end, _UNTAGGED)
        for header, size in _TAG_HEADERS:
            place = end - size - len(header)
            if place >= 0 and self._data.startswith(header, place):
                found = self._ending_at(place, _BY_TAG[size])
                if found is not None:
                    return found
        return None

    def _ending_at(self, end: int, sizes: _Sizes) -> int | None:
        """Return the offset of the `opaque signature<V>` that ends at `end`; prefer one of a fixed size."""
        fixed, largest = sizes
        begins = self._beginnings(max(self._start, end - 2 - largest), end)
        for place in begins:
            if end - self._content(place) in fixed:
                return place
        for place in begins:
            start = self._content(place)
            if end - start <= largest and _is_ecdsa(self._data, start, end):
                return place
        return None

    def _beginnings(self, since: int, end: int) -> list[int]:
        """Return the offsets from `since` on at which a signature that ends at `end` may begin."""
        for block in range(since // _BLOCK, (end - 1) // _BLOCK + 1):
            if block not in self._blocks:
                self._blocks.add(block)
                start, stop = block * _BLOCK, (block + 1) * _BLOCK
                for match in _SIGNATURE.finditer(self._data, start, stop + _HEADER_OCTETS):
                    if match.start() < stop:
                        self._begins.setdefault(match.end(1) + match[1][0], []).append(match.start())
        return sorted(place for place in self._begins.get(end, ()) if place >= since)

    def _content(self, place: int) -> int:
        return place + (1 if self._data[place] < 0x40 else 2)


def _is_ecdsa(data: bytes, start: int, end: int) -> bool:
    """Tell whether these octets are an ECDSA-Sig-Value in DER: a SEQUENCE of two INTEGERs (RFC 3279 section 2.2.3)."""
    try:
        place = _der_content(data, start, 0x30)
        if _der_end(data, start) != end:
            return False
        second = _der_end(data, place)
        return data[place] == data[second] == 0x02 and _der_end(data, second) == end
    except IndexError:
        return False


def _der_content(data: bytes, start: int, tag: int) -> int:
    """Return the offset of a DER value's content; raise `IndexError` for another tag or a long length."""
    if data[start] != tag or (data[start + 1] > 0x80 and data[start + 1] != 0x81):
        raise IndexError
    return start + (3 if data[start + 1] == 0x81 else 2)


def _der_end(data: bytes, start: int) -> int:
    long = data[start + 1] == 0x81
    return start + 3 + data[start + 2] if long else start + 2 + data[start + 1]
