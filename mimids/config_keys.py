"""How one key of the configuration is declared and read: its type gives the reader, `key()` default and bounds.

A reader takes what TOML gave and the directory that relative paths are meant from; its `ValueError` is a sentence
that tells the operator what to write instead.
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
    """Where to listen: an address or name of this machine, and a port (0: any that is free)."""

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
    """A Unix socket."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


def _text(value: object, _: Path) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("write it as a string in double quotes")
    return value


def _integer(value: object, _: Path) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("write it as a whole number, without quotes")
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
        raise ValueError('write "host:port", such as "127.0.0.1:8443" or "[::1]:8443"; host 0.0.0.0 is every address')
    return TcpAddress(bare, int(port))


def _tcp_or_unix(value: object, directory: Path) -> TcpAddress | UnixAddress:
    kind, colon, path = _text(value, directory).partition(":")
    return UnixAddress(_path(path, directory)) if colon and kind == "unix" else _tcp(value, directory)


def domain(value: object, directory: Path) -> ProviderId:
    """Read a provider's name."""
    try:
        return provider_id(_text(value, directory))
    except ValueError:
        raise ValueError('write a domain name in lower case, without a port, such as "a.example"') from None


def _url(value: object, directory: Path) -> Url:
    text = _text(value, directory)
    try:
        url = urlsplit(text)
        plain = url.hostname and url.port != 0 and f"https://{url.netloc}" == text.rstrip("/") and "@" not in text
    except ValueError:  # of the port, or of an address in brackets
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
    """Read one value of a key's type; raise `ValueError` saying what to write instead."""
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
    if get_origin(kind) in (Union, UnionType):  # X | None: no key, no value
        (inner,) = (part for part in get_args(kind) if part is not NoneType)
        return read(inner, value, directory)
    raise TypeError(f"no reader for {kind}")


@attrs.frozen
class Key:
    """How a key is read: its default as written in the file (None: none), and the least that a number may be."""

    default: object
    at_least: int

    def check(self, value: object) -> None:
        """Hold a number to its bound; raise `ValueError` saying which."""
        if isinstance(value, int) and not isinstance(value, bool) and value < self.at_least:
            raise ValueError(f"write {self.at_least} or more")


def key(default: object, *, at_least: int = 1) -> Any:
    """Declare a key; `{provider}` in a default stands for the provider's domain."""
    return attrs.field(metadata={METADATA: Key(default, at_least)})
