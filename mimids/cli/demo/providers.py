"""The three providers of the demonstration, each a process with its own directory, database and log."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import attrs

from mimids.cli import running
from mimids.cli.certificates import Authority, new_authority
from mimids.cli.demo.recording import DEVICE, HOMES, PROVIDERS
from mimids.cli.setup import AUTHORITY, SetupPlan, make_provider
from mimids.client import Contact
from mimids.config import Config
from mimids.ds.commands import command_named
from mimids.wire.ids import ProviderId

START_SECONDS: Final = 40
STOP_SECONDS: Final = 10
_LIFETIMES: Final = (
    "\n[key_packages]\nmax_lifetime_days = 3700          # the recorded KeyPackages are valid for ten years\n"
)


@attrs.frozen
class Account:
    """A user's device and contact card."""

    user: str
    token: str = attrs.field(repr=False)
    contact: Contact


@attrs.frozen
class DemoProvider:
    """One provider with its directory, configuration and accounts."""

    directory: Path
    config: Config
    accounts: Mapping[str, Account]

    @property
    def url(self) -> str:
        """Return the URL for the devices of its own users."""
        return f"https://{self.config.listen.client}"

    @property
    def log(self) -> Path:
        """Return the file with the output of the process."""
        return self.directory / "log"

    def files(self) -> Iterator[tuple[Path, bytes]]:
        """Yield every file that the provider wrote, with its contents: database, write-ahead log, log."""
        for path in [self.log, *self.config.data_dir.iterdir()]:
            if path.is_file():
                yield path, path.read_bytes()


def make_providers(directory: Path) -> tuple[dict[ProviderId, DemoProvider], Path]:
    """Set up all providers in a directory, with users, devices and contact cards; return them and their authority."""
    authority: Authority = new_authority("mimids demo")
    certificate, private_key = (directory / name for name in AUTHORITY)
    authority.write(certificate, private_key)
    ports = iter(_free_ports(3 * len(PROVIDERS)))
    addresses = {name: [f"127.0.0.1:{next(ports)}" for _ in range(3)] for name in PROVIDERS}
    made = {}
    for name, (public, client, operator) in addresses.items():
        others = tuple((other, f"https://{addresses[other][0]}") for other in PROVIDERS if other != name)
        plan = SetupPlan(
            provider=name,
            public=public,
            client=client,
            operator=operator,
            public_url=f"https://{public}",
            allow=tuple(other for other, _ in others),
            peers=others,
            authority=certificate,
            further=_LIFETIMES,
        )
        config = make_provider(directory / name, plan)
        users = (user for user, home in HOMES.items() if home == name)
        made[name] = DemoProvider(directory / name, config, {user: _account(config, user) for user in users})
    return made, certificate


def _account(config: Config, user: str) -> Account:
    running.run(config, command_named("user add"), {"name": user})
    device = running.run(config, command_named("device add"), {"user": user, "name": DEVICE})
    card = running.run(config, command_named("contact"), {"user": user})
    return Account(user, device["token"], Contact.from_json(card))


def _free_ports(count: int) -> Sequence[int]:
    """Return that many different free ports."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def running_providers(
    providers: Mapping[ProviderId, DemoProvider],
) -> Iterator[Mapping[ProviderId, subprocess.Popen[bytes]]]:
    """Run `mimids serve` for each provider, and stop them all at the end of the block."""
    processes: dict[ProviderId, subprocess.Popen[bytes]] = {}
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    try:
        for name, provider in providers.items():
            with provider.log.open("wb") as log:
                processes[name] = subprocess.Popen(
                    [sys.executable, "-m", "mimids", "serve", "--config", provider.directory / "mimids.toml"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                )
        yield processes
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            if process.poll() is None:
                process.kill()
                process.wait()
