"""`mimids serve`: run a provider until SIGTERM or SIGINT; `--dev` makes a temporary one first."""

from __future__ import annotations

import errno
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from mimids.cli.places import CONFIG_FILE, DEV_DIRECTORY, config_option, example, load_config, refuse_backup
from mimids.cli.refusals import CommandRefused, or_refused
from mimids.cli.setup import AUTHORITY, SetupPlan, make_pair, migrate_database, write_configuration
from mimids.config import Config, load
from mimids.store.engine import lock, migrate
from mimids.wire.ids import ProviderId

if TYPE_CHECKING:
    from mimids.app import ServingProvider

_DEV_PROVIDER: Final = ProviderId("localhost")  # curl and browsers resolve it without configuration
_DEV_PORTS: Final = (8443, 8444, 8445)


@example("mimids serve --config mimids.toml", "mimids serve --dev")
@click.command()
@config_option
@click.option("--dev", is_flag=True, help="Serve a development provider, localhost, from ./mimids-dev/.")
def serve(config_file: Path | None, dev: bool) -> None:
    """Run the server until SIGTERM or SIGINT.

    It finishes the requests in flight before it stops. If there is no database, it creates one. It refuses a database
    of an older version: run `mimids migrate` first.
    """
    if dev and config_file is not None:
        raise click.UsageError("--dev and --config exclude each other: --dev makes its own configuration")
    config = or_refused(_development) if dev else load_config(config_file)
    if not config.database.exists():
        or_refused(lambda: migrate_database(config))
    elif not or_refused(lambda: migrate.pending(config.database)):  # else the server says so
        refuse_backup(config.database)
    from mimids import process

    sys.exit(or_refused(lambda: process.serve(config, on_ready=lambda bound: _announce(config, bound, dev=dev))))


def _development() -> Config:
    """Prepare `mimids-dev/`: data and certificates stay, ports are chosen again and the configuration is rewritten."""
    path = DEV_DIRECTORY / CONFIG_FILE
    if path.exists() and lock.holder(load(path).data_dir) is not None:
        raise CommandRefused(
            f"a server is already running on {DEV_DIRECTORY}/", "stop it first, or start in another directory"
        )
    DEV_DIRECTORY.mkdir(exist_ok=True)
    public, client, operator = map(_free_port, _DEV_PORTS)
    plan = SetupPlan(
        provider=_DEV_PROVIDER,
        public=f"127.0.0.1:{public}",
        client=f"127.0.0.1:{client}",
        operator=f"127.0.0.1:{operator}",
        public_url=f"https://localhost:{public}",
        note="Each `mimids serve --dev` writes this file again.",
    )
    if not (DEV_DIRECTORY / AUTHORITY[0]).exists():
        make_pair(DEV_DIRECTORY, plan)
    path.unlink(missing_ok=True)
    write_configuration(DEV_DIRECTORY, plan)
    config = load(path)
    migrate_database(config)
    return config


def _free_port(wanted: int) -> int:
    """Return the wanted port if it is free, else another free one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _announce(config: Config, bound: ServingProvider, *, dev: bool) -> None:
    """Print the addresses of the listeners and, in development, what to try next."""
    scheme = "http" if config.listen.client_is_plain else "https"
    where = bound.addresses
    click.echo(f"mimids serves {config.provider}")
    click.echo(f"  public    {config.listen.public_url} at {where['public']}")
    click.echo(f"  client    {'' if where['client'].startswith('unix:') else scheme + '://'}{where['client']}")
    click.echo(f"  operator  http://{where['operator']}")
    click.echo(f"  console   http://{where['operator']}/console")
    if dev:
        click.echo("\nDevelopment certificates and data are in ./mimids-dev/. Try next, in another terminal:")
        click.echo("  mimids user add alice")
        click.echo("  mimids contact alice")
        click.echo(f"  curl --cacert mimids-dev/ca.pem {config.listen.public_url}/.well-known/mimi-ds")
    sys.stdout.flush()
