"""Binary HTTP, key configurations with their signatures, encapsulated messages, and stored keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from fuzz.target import Target
from fuzz.targets.structs import decoded
from mimids.errors import MimiError
from mimids.ohttp.at_rest import KeyUnavailable, OperatorKey, protect, unprotect
from mimids.ohttp.bhttp import (
    Interim,
    Request,
    Response,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from mimids.ohttp.client import encapsulate
from mimids.ohttp.config import KEY_CONFIG, KeyConfig, decode_keys, encode_keys, key_config
from mimids.ohttp.date import read_date, write_date
from mimids.ohttp.gateway import open_request, read_request
from mimids.ohttp.hpke import Aead, HpkeError, PrivateKey
from mimids.ohttp.keyring import KeyIdsExhausted, Keyring, KeyRow, Schedule, load_row
from mimids.ohttp.keys_signature import Identity, KeysRefused, sign, verify
from mimids.ohttp.padding import pad_request, pad_response
from mimids.wire.codec import UINT8, UINT32, WireError, vector
from mimids.wire.declare import codec, encode, struct, wire
from mimids.wire.ids import ProviderId

_KEY: Final = PrivateKey(bytes(range(32)))
_IDENTITY: Final = Identity(bytes(32))
_PROVIDER: Final = ProviderId("a.example")
_OPERATOR: Final = OperatorKey(bytes(range(1, 33)))
_DATE: Final = b"Tue, 01 Dec 2026 12:00:00 GMT"
_REQUEST: Final = Request(
    "POST", "https", "a.example", "/key-package", ((b"content-type", b"application/mimi-ds"), (b"date", _DATE)), b"body"
)
_RESPONSE: Final = Response(
    200, ((b"content-type", b"a/b"),), b"x" * 70, ((b"t", b""),), (Interim(103, ((b"l", b"m"),)),)
)


def _run_bhttp(octets: bytes) -> None:
    """Read a message of either kind; in any framing, what is written is read as the same message."""
    with suppress(WireError):
        request = decode_request(octets)
        for each in (False, True):
            assert decode_request(pad_request(encode_request(request, indeterminate=each))) == request
        date = read_date(request.field(b"date"))
        assert date is None or read_date(write_date(date)) == date
    with suppress(WireError):
        response = decode_response(octets)
        for each in (False, True):
            assert decode_response(pad_response(encode_response(response, indeterminate=each))) == response
        response.field(b"cookie")


def _bhttp_seeds() -> Iterator[bytes]:
    for each in (False, True):
        yield encode_request(_REQUEST, indeterminate=each)
        yield encode_response(_RESPONSE, indeterminate=each)
    yield encode_request(Request("OPTIONS", "http", "", "*", ((b":x", b"y"), (b"expect", b"100-continue")))) + bytes(9)
    yield encode_request(Request("CONNECT", "", "a:443", ""))[:-3]
    for date in (b"Tuesday, 01-Dec-26 12:00:00 GMT", b"Tue Dec  1 12:00:00 2026", b"Tue, 31 Feb 2026 12:00:60 GMT"):
        yield encode_request(Request("GET", "https", "", "/", ((b"date", date),)))


def _run_keys(octets: bytes) -> None:
    """Read key configurations: alone, as their provider signed them, and with the header after three NULs."""
    with suppress(WireError):
        configs = decode_keys(octets)
        assert not configs or decode_keys(encode_keys(configs)) == configs
    body, _, header = octets.partition(b"\0\0\0")
    for signed, signature in ((octets, sign(_PROVIDER, octets, 100, _IDENTITY)), (body, header.decode("latin-1"))):
        for now in (0, 101):
            with suppress(KeysRefused):
                for config in verify(_PROVIDER, signed, signature, _IDENTITY.public, now):
                    _use(config)
    single = decoded_config(octets)
    if single is not None:
        _use(single)


def decoded_config(octets: bytes) -> KeyConfig | None:
    """Return a single configuration, whose encoding must be the octets; None if it is not valid."""
    try:
        config = KEY_CONFIG.decode(octets)
    except WireError:
        return None
    assert KEY_CONFIG.encode(config) == octets
    return config


def _use(config: KeyConfig) -> None:
    with suppress(ValueError, HpkeError):
        encapsulate(config, b"request", bytes(range(32)))


def _keys_seeds() -> Iterator[bytes]:
    one, other = key_config(1, _KEY), KeyConfig(2, 0x0010, bytes(65), ((2, 2), (1, 1)))
    unknown = b"\0\x09\x03\xff\xff\0\4\0\1\0\1"
    for configs in ((one,), (one, other), (other,)):
        body = encode_keys(configs)
        yield body
        yield body + b"\0\0\0" + sign(_PROVIDER, body, 100, _IDENTITY).encode()
    yield encode_keys((one,)) + unknown
    yield KEY_CONFIG.encode(one)


def _run_encapsulated(octets: bytes) -> None:
    """Open a request as it comes, then one that is sealed for us and contains these octets; then answer it."""
    with suppress(WireError, MimiError):
        open_request(octets, {1: _KEY})
    aead = Aead.AES_128_GCM if octets[:1] < b"\x80" else Aead.CHACHA20_POLY1305
    sealed = encapsulate(key_config(1, _KEY), octets[1:], bytes(range(32)), aead=aead)
    opened = open_request(sealed.message, {1: _KEY})
    assert opened.request == octets[1:]
    with suppress(WireError):
        read_request(opened)
    with suppress(HpkeError):
        sealed.opener.open(octets)
    answer = opened.sealer.seal(octets, bytes(opened.sealer.nonce_size))
    assert sealed.opener.open(answer) == octets


def _encapsulated_seeds() -> Iterator[bytes]:
    for aead in Aead:
        yield encapsulate(key_config(1, _KEY), encode_request(_REQUEST), bytes(range(32)), aead=aead).message
    yield b"\0" + encode_request(_REQUEST)
    yield b"\xff" + encode_request(Request("GET", "https", "", "/", ((b"expect", b"100-continue"),)))


@struct
class Rotation:
    """A schedule, and the times at which keys were made or asked for, as seconds after the one before."""

    key_id: int = wire(UINT8)
    rotate: int = wire(UINT32)
    grace: int = wire(UINT32)
    pauses: tuple[int, ...] = wire(vector(UINT32, most=64))


def _run_stored_keys(octets: bytes) -> None:
    """Read a stored key; rotate keys, each of which must be stored and read again."""
    for operator in (None, _OPERATOR):
        with suppress(KeyUnavailable):
            unprotect(octets, b"place", operator)
    found = decoded(codec(Rotation), octets)
    if found is None:
        return
    try:
        ring = Keyring((), Schedule(found.rotate, found.grace))
    except ValueError:
        return
    now = 0
    for number, pause in enumerate(found.pauses):
        now += pause
        served = ring.served(now)
        assert served is None or now <= served.not_after
        if ring.rotation_due_at(now) > now:
            continue
        rows = tuple(row for row in ring.rows if row not in ring.outlived(now))
        try:
            made = Keyring(rows, ring.schedule).next_row(now, number.to_bytes(32, "big"))
        except KeyIdsExhausted:
            return
        assert made.key_id not in {row.key_id for row in rows}
        stored = made.stored(_OPERATOR, bytes(12))
        assert load_row(made.key_id, made.created_at, made.retire_at, stored, _OPERATOR).private == made.private
        ring = Keyring((*rows, made), ring.schedule)
        assert ring.served(now) is not None


def _stored_seeds() -> Iterator[bytes]:
    for operator in (None, _OPERATOR):
        yield protect(_KEY, b"place", operator, bytes(12))
        yield KeyRow(1, _KEY, 5, 5000).stored(operator, bytes(12))
    yield encode(Rotation(7, 1000, 2000, (0, 500, 600, 3000, 10)))
    yield encode(Rotation(7, 10, 2000, tuple([10] * 60)))


TARGETS: Final = (
    Target(name="bhttp", run=_run_bhttp, seeds=_bhttp_seeds),
    Target(name="ohttp_keys", run=_run_keys, seeds=_keys_seeds),
    Target(name="encapsulated", run=_run_encapsulated, seeds=_encapsulated_seeds),
    Target(name="stored_keys", run=_run_stored_keys, seeds=_stored_seeds, shape=lambda _: (0, codec(Rotation))),
)
