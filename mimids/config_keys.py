"""The declaration of one key of the configuration: its type selects the reader, `key()` gives default and bounds.

A reader gets the TOML value and the directory at which relative paths begin. Its `ValueError` tells the operator what
to write instead.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, NewType, Union, get_args, get_origin
from urllib.parse import urlsplit

import attrs

from mimids.wire.ids import ProviderId, provider_id

Url = NewType("Url", str)  # https://host[:port], nothing after it

METADATA: Final = "key"


@attrs.frozen
class TcpAddress:
    """An address or name of this machine, and a port to listen on; port 0 is any free one."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Tell whether only this machine can reach it."""
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
    digits = port.isascii() and port.isdigit() and len(port) <= 5
    if not (colon and bare and digits and int(port) < 65536) or (":" in bare and bare == host):
        raise ValueError(
            'write "host:port", such as "127.0.0.1:8443" or "[::1]:8443"; 0.0.0.0 stands for all addresses'
        )
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


READERS: Final[Mapping[object, Callable[[object, Path], object]]] = {
    str: _text,
    int: _integer,
    bool: _boolean,
    Path: _path,
    Url: _url,
    ProviderId: domain,
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
    """The default of a key, as written in the file (None: no default), and the lower bound of a number."""

    default: object
    at_least: int

    def check(self, value: object) -> None:
        """Check a number against its bound; raise `ValueError`, which names the bound."""
        if isinstance(value, int) and not isinstance(value, bool) and value < self.at_least:
            raise ValueError(f"write {self.at_least} or more")


def key(default: object, *, at_least: int = 1) -> Any:
    """Declare a key; `{provider}` in a default is replaced by the domain of this provider."""
    return attrs.field(metadata={METADATA: Key(default, at_least)})
