"""`mimids serve`: run a provider until SIGTERM or SIGINT; `--dev` makes a throw-away one first."""

from __future__ import annotations

import errno
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from mimids.cli.places import CONFIG_FILE, DEV_DIRECTORY, config_option, example, load_config, require_present
from mimids.cli.refusals import CommandRefused, or_refused
from mimids.cli.setup import AUTHORITY, SetupPlan, bring_up, make_pair, write_configuration
from mimids.config import Config, load
from mimids.store.engine import lock, migrate
from mimids.wire.ids import ProviderId

if TYPE_CHECKING:
    from mimids.app import ServingProvider

_DEV_PROVIDER: Final = ProviderId("localhost")  # resolves wherever loopback does: curl and browsers need no help
_DEV_PORTS: Final = (8443, 8444, 8445)


@example("mimids serve --config mimids.toml", "mimids serve --dev")
@click.command()
@config_option
@click.option("--dev", is_flag=True, help="Serve a throw-away provider, localhost, from ./mimids-dev/.")
def serve(config_file: Path | None, dev: bool) -> None:
    """Serve until SIGTERM or SIGINT, which let requests in flight end.

    A database that is not there yet is made; one of an older version is left to `mimids migrate`.
    """
    if dev and config_file is not None:
        raise click.UsageError("--dev has a configuration of its own; leave --config away")
    config = or_refused(_development) if dev else load_config(config_file)
    if not config.database.exists():
        or_refused(lambda: bring_up(config))
    elif not or_refused(lambda: migrate.pending(config.database)):  # else the server says so
        require_present(config.database)
    from mimids import process

    sys.exit(or_refused(lambda: process.serve(config, on_ready=lambda bound: _announce(config, bound, dev=dev))))


def _development() -> Config:
    """Make `mimids-dev/` ready: what is there stays, ports and file are chosen anew."""
    path = DEV_DIRECTORY / CONFIG_FILE
    if path.exists() and lock.holder(load(path).data_dir) is not None:
        raise CommandRefused(
            f"a server is running on {DEV_DIRECTORY}/ already", "stop it first, or start in another directory"
        )
    DEV_DIRECTORY.mkdir(exist_ok=True)
    public, client, operator = map(_free_port, _DEV_PORTS)
    plan = SetupPlan(
        provider=_DEV_PROVIDER,
        public=f"127.0.0.1:{public}",
        client=f"127.0.0.1:{client}",
        operator=f"127.0.0.1:{operator}",
        public_url=f"https://localhost:{public}",
        note="Written anew by each `mimids serve --dev`.",
    )
    if not (DEV_DIRECTORY / AUTHORITY[0]).exists():
        make_pair(DEV_DIRECTORY, plan)
    path.unlink(missing_ok=True)
    write_configuration(DEV_DIRECTORY, plan)
    config = load(path)
    bring_up(config)
    return config


def _free_port(wanted: int) -> int:
    """Return the port if nobody listens there, else one that is free."""
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
    """Say where it serves and, in development, what to try next."""
    scheme = "http" if config.listen.client_is_plain else "https"
    where = bound.addresses
    click.echo(f"mimids serves {config.provider}")
    click.echo(f"  public    {config.listen.public_url} at {where['public']}")
    click.echo(f"  client    {'' if where['client'].startswith('unix:') else scheme + '://'}{where['client']}")
    click.echo(f"  operator  http://{where['operator']}")
    click.echo(f"  console   http://{where['operator']}/console")
    if dev:
        click.echo("\nThrow-away certificates and data are in ./mimids-dev/. To try next, in another terminal:")
        click.echo("  mimids user add alice")
        click.echo("  mimids contact alice")
        click.echo(f"  curl --cacert mimids-dev/ca.pem {config.listen.public_url}/.well-known/mimi-ds")
    sys.stdout.flush()
