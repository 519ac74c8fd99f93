"""The declaration of one key of the configuration: its type selects a reader; `key()` gives its default and bounds.

A reader gets the TOML value and the directory at which relative paths begin. Its `ValueError` tells the operator what
to write instead.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, NewType, Union, get_args, get_origin
from urllib.parse import urlsplit

import attrs

from mimids.mls.suite_table import CLASSICAL, OFF, POST_QUANTUM_NAMES
from mimids.wire.ids import CipherSuite, ProviderId, provider_id

Url = NewType("Url", str)  # https://host[:port], nothing after it
StoreUrl = NewType("StoreUrl", str)  # postgresql://[user@]host[:port][,host...]/database[?parameters], no password
WebOrigin = NewType("WebOrigin", str)  # as a browser writes it into Origin (RFC 6454 section 6.2)
Contact = NewType("Contact", str)  # a mailto or https URL; "" means no contact
SuiteCodePoints = NewType("SuiteCodePoints", dict[CipherSuite, str])  # cipher suites by name, or `OFF`

METADATA: Final = "key"
LARGEST_PORT: Final = 65_535
MOST: Final = (1 << 53) - 1  # JSON represents each number up to it exactly
MOST_DAYS: Final = 1_000_000
_UNITS_OF_A_DAY: Final = {"days": 1, "hours": 24, "seconds": 86_400, "milliseconds": 86_400_000}


@attrs.frozen
class TcpAddress:
    """An address or name of this machine, and a port to listen on; port 0 means any free port."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Tell whether only this machine can reach the address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@attrs.frozen
class UnixAddress:
    """The path of a Unix socket."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


def _text(value: object, _: Path) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("write a string in double quotes")
    return value


def _integer(value: object, _: Path) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("write a whole number, without quotes")
    return value


def _boolean(value: object, _: Path) -> bool:
    if not isinstance(value, bool):
        raise ValueError("write true or false, without quotes")
    return value


def _path(value: object, directory: Path) -> Path:
    return directory / _text(value, directory)


def _tcp(value: object, directory: Path) -> TcpAddress:
    host, colon, port = _text(value, directory).rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    digits = port.isascii() and port.isdigit()
    if not (colon and bare and digits) or (":" in bare and bare == host):
        raise ValueError(
            'write "host:port", such as "127.0.0.1:8443" or "[::1]:8443"; 0.0.0.0 stands for all addresses'
        )
    if len(port) > 5 or int(port) > LARGEST_PORT:
        raise ValueError(f"the port {port} is out of range; write one from 1 to {LARGEST_PORT}, or 0 for any free port")
    return TcpAddress(bare, int(port))


def _tcp_or_unix(value: object, directory: Path) -> TcpAddress | UnixAddress:
    kind, colon, path = _text(value, directory).partition(":")
    return UnixAddress(_path(path, directory)) if colon and kind == "unix" else _tcp(value, directory)


def domain(value: object, directory: Path) -> ProviderId:
    """Read the domain of a provider."""
    try:
        return provider_id(_text(value, directory))
    except ValueError:
        raise ValueError('write a domain name in lower case, without a port, such as "a.example"') from None


def _url(value: object, directory: Path) -> Url:
    text = _text(value, directory)
    try:
        url = urlsplit(text)
        plain = url.hostname and url.port != 0 and f"https://{url.netloc}" == text.rstrip("/") and "@" not in text
    except ValueError:  # the port, or an address in brackets, is not valid
        plain = False
    if not plain:
        raise ValueError('write "https://host" or "https://host:port", with nothing after it')
    return Url(text.rstrip("/"))


def _store_url(value: object, directory: Path) -> StoreUrl:
    text = _text(value, directory)
    scheme, separator, rest = text.partition("://")
    user, at, _ = rest.partition("/")[0].rpartition("@")
    if not separator or scheme not in ("postgresql", "postgres") or (at and ":" in user) or "password=" in text:
        raise ValueError(
            'write "postgresql://user@host/database" without a password: use a certificate, a passfile or ~/.pgpass'
        )
    return StoreUrl(text)


def _web_origin(value: object, directory: Path) -> WebOrigin:
    text = _text(value, directory)
    scheme, _, host = text.partition("://")
    try:
        url = urlsplit(text)
        name, port = url.hostname or "", url.port
    except ValueError:  # the port, or an address in brackets, is not valid
        name, port = "", None
    shown = f"[{name}]" if ":" in name else name
    usual = {"https": 443, "http": 80}.get(scheme)
    written = shown if port in (None, usual) else f"{shown}:{port}"
    if not name or usual is None or not text.isascii() or host != written:
        raise ValueError('write "https://host" or "https://host:port", as a browser shows it: in lower case, no path')
    if scheme == "http" and not TcpAddress(name, 0).is_loopback:
        raise ValueError('write "https://..."; only a page of this machine may use plain http')
    return WebOrigin(text)


def _contact(value: object, _: Path) -> Contact:
    known = isinstance(value, str) and (not value or value.startswith(("mailto:", "https://")))
    if not isinstance(value, str) or not known or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError('write "mailto:somebody@a.example" or an https URL')
    return Contact(value)


def _suite_code_points(value: object, _: Path) -> dict[CipherSuite, str]:
    if not isinstance(value, dict):
        raise ValueError(f'write code points with their suites, such as {{ "0x0060" = "{POST_QUANTUM_NAMES[0]}" }}')
    found = {}
    for code, name in value.items():
        if not re.fullmatch("0x[0-9A-Fa-f]{4}", code):
            raise ValueError(f'{code} is no code point; write "0x" and four hex digits')
        if int(code, 16) <= len(CLASSICAL):
            raise ValueError(f"{code} is the code point of a suite of RFC 9420; write another code point")
        if name != OFF and name not in POST_QUANTUM_NAMES:
            raise ValueError(f'for {code}, write "{OFF}" or one of {", ".join(POST_QUANTUM_NAMES)}')
        found[CipherSuite(int(code, 16))] = name
    return found


READERS: Final[Mapping[object, Callable[[object, Path], object]]] = {
    str: _text,
    int: _integer,
    bool: _boolean,
    Path: _path,
    Url: _url,
    StoreUrl: _store_url,
    WebOrigin: _web_origin,
    Contact: _contact,
    ProviderId: domain,
    SuiteCodePoints: _suite_code_points,
    TcpAddress: _tcp,
    TcpAddress | UnixAddress: _tcp_or_unix,
}


def read(kind: Any, value: object, directory: Path) -> object:
    """Read a value of this type; raise `ValueError`, which says what to write instead."""
    if kind in READERS:
        return READERS[kind](value, directory)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError("write one of " + ", ".join(f'"{choice}"' for choice in get_args(kind)))
        return value
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError('write a list in brackets, such as ["b.example"]')
        return tuple(read(get_args(kind)[0], item, directory) for item in value)
    if get_origin(kind) in (Union, UnionType):  # X | None: None if the key is missing
        (inner,) = (part for part in get_args(kind) if part is not NoneType)
        return read(inner, value, directory)
    raise TypeError(f"no reader for {kind}")


@attrs.frozen
class Key:
    """The default of a key, as written in the file (None: no default), and the lower bound of a number.

    The upper bound of a number is `MOST`. A time is at most `MOST_DAYS` long, so that the database can hold the result
    of each calculation with it.
    """

    default: object
    at_least: int

    def check(self, value: object, name: str) -> None:
        """Check the number of the key `name` against its bounds; raise `ValueError`, which names the bound."""
        if not isinstance(value, int) or isinstance(value, bool):
            return
        unit = _UNITS_OF_A_DAY.get(name.rpartition("_")[2])
        most = MOST if unit is None else MOST_DAYS * unit
        if value < self.at_least:
            raise ValueError(f"write {self.at_least} or more")
        if value > most:
            raise ValueError(f"write {most} or less")


def key(default: object, *, at_least: int = 1) -> Any:
    """Declare a key; `{provider}` in a default is replaced by the domain of this provider."""
    return attrs.field(metadata={METADATA: Key(default, at_least)})
