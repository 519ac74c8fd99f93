"""Federations: providers that know each other, with certificates, ports and links, for the length of a block."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from mimids.config import load
from mimids.testing.control import NotAnswering
from mimids.testing.devices import DeviceThread
from mimids.testing.provider import Provider, ProviderFailed
from mimids.testing.session import Session, default_session
from mimids.testing.starting import START_SECONDS, Process

KEEP: Final = "MIMIDS_TESTING_KEEP"  # set to 1, it keeps the directories of the providers
HOST: Final = "127.0.0.1"

Table = Mapping[str, Mapping[str, Any]]

# Settings that are shorter than the defaults, because tests do not wait.
_IN_TESTS: Final[Table] = {"delivery": {"backoff_cap_seconds": 2}, "listen": {"drain_seconds": 4}}


class Link:
    """The link from one provider to another: it carries the requests of the first to the second, and the answers."""

    def __init__(self, federation: Federation, source: Provider, target: Provider) -> None:
        self._federation = federation
        self._source = source
        self._target = target

    def cut(self) -> None:
        """Break all connections, and refuse new ones."""
        self._set("cut")

    def stall(self) -> None:
        """Hold all data back without breaking connections."""
        self._set("stalled")

    def delay(self, seconds: float) -> None:
        """Delay every piece of data in both directions."""
        self._set("open", seconds)

    def duplicate(self) -> None:
        """Deliver every request twice; the caller gets the second answer."""
        self._put({"do": "duplicate"})

    def answer(self, status: int, *, retry_after: int | None = None) -> None:
        """Answer every request with this status instead of delivering it."""
        self._put({"do": "answer", "status": status, "retry_after": retry_after})

    def garbage(self) -> None:
        """Answer every request with 200 and random octets instead of delivering it."""
        self._put({"do": "garbage"})

    def restore(self) -> None:
        """End all faults of this link."""
        self._target.put_faults(self._source.name, [])
        if self._federation.has_links:
            self._set("open")

    def _put(self, fault: Mapping[str, Any]) -> None:
        self._target.put_faults(self._source.name, [fault])

    def _set(self, flow: str, delay: float = 0.0) -> None:
        self._federation.set_link(self._source.name, self._target.name, flow, delay)


class Federation:
    """Providers by name, in the order they were named. Iterating and unpacking give the providers."""

    def __init__(self, session: Session, directory: Path) -> None:
        self.directory = directory
        self.providers: dict[str, Provider] = {}
        self._session = session
        self._devices = DeviceThread()
        self._held_ports: list[socket.socket] = []
        self._links: Process | None = None

    def __iter__(self) -> Iterator[Provider]:
        return iter(self.providers.values())

    def __len__(self) -> int:
        return len(self.providers)

    def __getitem__(self, name: str) -> Provider:
        return self.providers[name]

    def link(self, source: Provider | str, target: Provider | str) -> Link:
        """Return the link from one provider to another."""
        ends = (each if isinstance(each, Provider) else self[each] for each in (source, target))
        return Link(self, *ends)

    @property
    def has_links(self) -> bool:
        """Whether the providers reach each other through links."""
        return self._links is not None

    def set_link(self, source: str, target: str, flow: str, delay: float) -> None:
        """Change the flow of a link: `open`, `stalled` or `cut`, and its delay in seconds."""
        if self._links is None:
            raise RuntimeError("this federation was made with links=False, so no link can be changed")
        try:
            self._links.control.ask({"link": f"{source} {target}", "flow": flow, "delay": delay})
        except NotAnswering as error:
            raise ProviderFailed("the links between the providers do not answer") from error

    def begin(self, names: Sequence[str], config: Table, configs: Mapping[str, Table], *, links: bool) -> None:
        """Make the providers and start their processes; `wait_ready` waits for them."""
        self._session.preload()
        unknown = set(configs) - set(names)
        if unknown or len(set(names)) < len(names):
            raise ValueError(
                f"configs names no such provider: {', '.join(sorted(unknown))}"
                if unknown
                else "a provider's name occurs twice"
            )
        publics = {name: self._hold_port() for name in names}
        between = {(source, target): self._hold_port() for source in names for target in names if source != target}
        for name in names:
            peers = {}
            for other in names:
                if other != name:
                    port = between[name, other] if links else publics[other]
                    peers[other] = {"url": f"https://{HOST}:{port}"}
            self._make(name, publics[name], peers, _merged(_IN_TESTS, config, configs.get(name, {})))
        if links and between:
            ports = {f"{source} {target}": [port, publics[target]] for (source, target), port in between.items()}
            self._links = self._session.start({"links": ports}, self.directory / "links.log")
        for provider in self:
            provider.begin()

    def wait_ready(self) -> None:
        """Wait until all providers serve; raise `ProviderFailed` if one does not."""
        if self._links is not None and self._links.control.wait_message(START_SECONDS) is None:
            raise ProviderFailed("the links between the providers do not start")
        for provider in self:
            provider.wait_ready()

    def close(self) -> None:
        """End all processes, whatever their state, and remove their directories unless MIMIDS_TESTING_KEEP is set."""
        with ExitStack() as stack:  # runs each callback, even if others raise
            if not os.environ.get(KEEP):
                stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            for held in self._held_ports:
                stack.callback(held.close)
            if self._links is not None:
                stack.callback(self._links.kill)
            for provider in self:
                stack.callback(provider.close)
            stack.callback(self._devices.close)

    def _make(self, name: str, public: int, peers: Mapping[str, Any], more: Mapping[str, Any]) -> None:
        directory = self.directory / name
        directory.mkdir()
        certificate, private_key = directory / "provider.pem", directory / "provider.key"
        self._session.issue(name).write(certificate, private_key)
        address = f"{HOST}:{public}"
        table = _merged(
            {
                "listen": {
                    "public": address,
                    "public_url": f"https://{address}",
                    "client": f"{HOST}:{self._hold_port()}",
                    "operator": f"{HOST}:{self._hold_port()}",
                },
                "tls": {
                    "certificate": str(certificate),
                    "private_key": str(private_key),
                    "trust": str(self._session.ca_file),
                },
                "federation": {"allow": list(peers)},
                "providers": peers,
            },
            more,
        )
        path = directory / "mimids.toml"
        path.write_text(_toml({"provider": name, "data_dir": "data", **table}), encoding="utf-8")
        self.providers[name] = Provider(
            name=name,
            directory=directory,
            config=load(path),
            ca_file=self._session.ca_file,
            session=self._session,
            device_thread=self._devices,
        )

    def _hold_port(self) -> int:
        """Reserve a port for the life of the federation, so that no other process takes it while a provider is down."""
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((HOST, 0))
        port: int = held.getsockname()[1]
        if sys.platform == "linux":  # elsewhere another socket cannot listen on a port that is bound
            self._held_ports.append(held)
        else:
            held.close()
        return port


@contextmanager
def federation(
    *names: str,
    config: Table | None = None,
    configs: Mapping[str, Table] | None = None,
    links: bool = True,
    session: Session | None = None,
) -> Iterator[Federation]:
    """Run providers that know each other for the length of a block.

    `config` has sections of the configuration for all providers, `configs` has sections for single providers by name.
    With links=False they reach each other directly, which is a little faster, but no link can be changed. Raises
    `ProviderFailed` and `config.ConfigError`.
    """
    made = new_federation(session)
    try:
        made.begin(names, config or {}, configs or {}, links=links)
        made.wait_ready()
        yield made
    finally:
        made.close()


def new_federation(session: Session | None = None) -> Federation:
    """Return a federation without providers, in a new directory. Call `begin`, `wait_ready`, and finally `close`."""
    return Federation(session or default_session(), Path(tempfile.mkdtemp(prefix="mimids-")))


def _merged(*tables: Mapping[str, Any]) -> dict[str, Any]:
    """Merge tables section by section; if several tables have a key, the last table counts."""
    merged: dict[str, Any] = {}
    for table in tables:
        for section, keys in table.items():
            merged[section] = {**merged.get(section, {}), **keys}
    return merged


def _toml(table: Mapping[str, Any]) -> str:
    """Write a configuration: strings, numbers, lists and sections of two levels."""
    top = {name: value for name, value in table.items() if not isinstance(value, Mapping)}
    lines = [f"{name} = {_value(value)}" for name, value in top.items()]
    for name, section in table.items():
        if not isinstance(section, Mapping):
            continue
        inner = {key: value for key, value in section.items() if isinstance(value, Mapping)}
        lines += ["", f"[{name}]", *(f"{key} = {_value(value)}" for key, value in section.items() if key not in inner)]
        for key, values in inner.items():
            lines += ["", f'[{name}."{key}"]', *(f"{each} = {_value(value)}" for each, value in values.items())]
    return "\n".join([*lines, ""])


def _value(value: object) -> str:
    return json.dumps(
        str(value) if isinstance(value, Path) else value
    )  # JSON strings, numbers and lists are valid TOML
