"""Providers that know each other, with everything around them, for the length of a block."""

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
from mimids.testing.devices import Asking
from mimids.testing.provider import Provider, ProviderFailed
from mimids.testing.session import Session, default_session
from mimids.testing.starting import START_SECONDS, Process

KEEP: Final = "MIMIDS_TESTING_KEEP"  # 1: what the providers wrote is not removed
HOST: Final = "127.0.0.1"

Table = Mapping[str, Mapping[str, Any]]

# What a test cannot wait for.
_IN_TESTS: Final[Table] = {"delivery": {"backoff_cap_seconds": 2}, "listen": {"drain_seconds": 4}}


class Link:
    """The way from one provider to another: what the first asks of the second goes through here, its answers too."""

    def __init__(self, federation: Federation, source: Provider, target: Provider) -> None:
        self._federation = federation
        self._source = source
        self._target = target

    def cut(self) -> None:
        """Break all connections, and every new one."""
        self._set("cut")

    def stall(self) -> None:
        """Let nothing through, and break nothing: what is sent waits."""
        self._set("stalled")

    def delay(self, seconds: float) -> None:
        """Let every piece of data take so much longer, both ways."""
        self._set("open", seconds)

    def duplicate(self) -> None:
        """Let every request arrive twice; the second answer is the one that is heard."""
        self._put({"do": "duplicate"})

    def answer(self, status: int, *, retry_after: int | None = None) -> None:
        """Let every request be answered with this status, and reach nobody."""
        self._put({"do": "answer", "status": status, "retry_after": retry_after})

    def garbage(self) -> None:
        """Let every request be answered with 200 and octets that are no answer, and reach nobody."""
        self._put({"do": "garbage"})

    def restore(self) -> None:
        """End all of this."""
        self._target.put_faults(self._source.name, [])
        if self._federation.has_links:
            self._set("open")

    def _put(self, fault: Mapping[str, Any]) -> None:
        self._target.put_faults(self._source.name, [fault])

    def _set(self, flow: str, delay: float = 0.0) -> None:
        self._federation.set_link(self._source.name, self._target.name, flow, delay)


class Federation:
    """Providers by name, in the order they were named; unpacks into them."""

    def __init__(self, session: Session, directory: Path) -> None:
        self.directory = directory
        self.providers: dict[str, Provider] = {}
        self._session = session
        self._asking = Asking()
        self._held: list[socket.socket] = []
        self._links: Process | None = None

    def __iter__(self) -> Iterator[Provider]:
        return iter(self.providers.values())

    def __len__(self) -> int:
        return len(self.providers)

    def __getitem__(self, name: str) -> Provider:
        return self.providers[name]

    def link(self, source: Provider | str, target: Provider | str) -> Link:
        """Return the way from one provider to another."""
        ends = (each if isinstance(each, Provider) else self[each] for each in (source, target))
        return Link(self, *ends)

    @property
    def has_links(self) -> bool:
        """Tell whether what the providers say to each other goes through links."""
        return self._links is not None

    def set_link(self, source: str, target: str, flow: str, delay: float) -> None:
        """Change a link; see `Link`."""
        if self._links is None:
            raise RuntimeError("this federation was made without links: a provider reaches the others directly")
        try:
            self._links.control.ask({"link": f"{source} {target}", "flow": flow, "delay": delay})
        except NotAnswering as error:
            raise ProviderFailed("the links between the providers do not answer") from error

    def begin(self, names: Sequence[str], config: Table, configs: Mapping[str, Table], *, links: bool) -> None:
        """Make and start the providers; `wait_ready` is to follow."""
        self._session.preload()
        unknown = set(configs) - set(names)
        if unknown or len(set(names)) < len(names):
            raise ValueError(f"no such provider: {', '.join(sorted(unknown))}" if unknown else "a name is there twice")
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
            told = {f"{source} {target}": [port, publics[target]] for (source, target), port in between.items()}
            self._links = self._session.start({"links": told}, self.directory / "links.log")
        for provider in self:
            provider.begin()

    def wait_ready(self) -> None:
        """Wait until all serve; raise `ProviderFailed`."""
        if self._links is not None and self._links.control.hear(START_SECONDS) is None:
            raise ProviderFailed("the links between the providers do not start")
        for provider in self:
            provider.wait_ready()

    def close(self) -> None:
        """End everything, whatever state it is in, and remove what was written (unless MIMIDS_TESTING_KEEP is set)."""
        with ExitStack() as stack:  # each of these, whatever becomes of the others
            if not os.environ.get(KEEP):
                stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            for held in self._held:
                stack.callback(held.close)
            if self._links is not None:
                stack.callback(self._links.end)
            for provider in self:
                stack.callback(provider.close)
            stack.callback(self._asking.close)

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
            asking=self._asking,
        )

    def _hold_port(self) -> int:
        """Return a port that is ours for the life of the federation: nobody else gets it while a provider is down."""
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((HOST, 0))
        port: int = held.getsockname()[1]
        if sys.platform == "linux":  # elsewhere a port that is bound cannot be listened to by another socket
            self._held.append(held)
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
    """Run providers that know each other, for the length of a block.

    `config` has sections of the configuration for all of them, `configs` for one by its name. Without `links` they
    reach each other directly, a little faster, and no link can be cut. Raises `ProviderFailed`, `config.ConfigError`.
    """
    made = new_federation(session)
    try:
        made.begin(names, config or {}, configs or {}, links=links)
        made.wait_ready()
        yield made
    finally:
        made.close()


def new_federation(session: Session | None = None) -> Federation:
    """Return a federation without providers, in a new directory; `begin`, `wait_ready` and `close` are its life."""
    return Federation(session or default_session(), Path(tempfile.mkdtemp(prefix="mimids-")))


def _merged(*tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return all sections, of each the keys of all; the last one that has a key decides."""
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
    return json.dumps(str(value) if isinstance(value, Path) else value)  # which TOML reads just the same
