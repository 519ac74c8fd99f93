"""`mimids serve`: run a provider until SIGTERM or SIGINT; `--dev` makes a temporary one first."""

from __future__ import annotations

import errno
import os
import shlex
import socket
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from mimids.cli.check.command import log_findings
from mimids.cli.owners import make_data_dir, require_owner
from mimids.cli.places import (
    CONFIG_FILE,
    DEV_DIRECTORY,
    config_option,
    example,
    find_config,
    is_of_environment,
    load_config,
    program,
    refuse_backup,
)
from mimids.cli.refusals import CommandRefused, or_refused
from mimids.cli.setup import AUTHORITY, SetupPlan, make_pair, migrate_database, write_configuration
from mimids.cli.showing import say
from mimids.config import Config, load
from mimids.store.engine import access, lock
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
    """Run the server until SIGTERM or SIGINT; SIGHUP and `mimids reload` make it read its configuration again.

    It finishes the requests in flight before it stops. If there is no database, it creates one. It refuses a database
    of an older version: run `mimids migrate` first.
    """
    if dev and config_file is not None and not is_of_environment():
        raise click.UsageError("--dev and --config exclude each other: --dev makes its own configuration")
    config = or_refused(_development) if dev else load_config(config_file)
    if config.data_dir.exists():
        or_refused(lambda: require_owner(config))
    if not or_refused(lambda: access.exists(config.place)):
        or_refused(lambda: migrate_database(config))
    elif not or_refused(lambda: access.pending(config.place)):  # if migrations are pending, the server says so
        refuse_backup(config.place)
    if config.store.url:  # this may be one more process on a database that exists
        or_refused(lambda: make_data_dir(config))
    from mimids import process

    path = DEV_DIRECTORY / CONFIG_FILE if dev else find_config(config_file)
    serve = partial(
        process.serve,
        config,
        on_ready=partial(_announce, config, dev=dev),
        load_config=partial(load, path.absolute()),
        log_findings=log_findings,
    )
    sys.exit(or_refused(serve))


def _development() -> Config:
    """Prepare `mimids-dev/`: keep existing data and certificates, choose ports again, and rewrite the configuration."""
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
    """Print the addresses of the listeners and, in development, commands to try next, which work as typed."""
    scheme = "http" if config.listen.client_is_plain else "https"
    where = bound.addresses
    say(f"mimids serves {config.provider}")
    say(f"  public    {config.listen.public_url} at {where['public']}")
    say(f"  client    {'' if where['client'].startswith('unix:') else scheme + '://'}{where['client']}")
    say(f"  operator  http://{where['operator']}")
    say(f"  console   http://{where['operator']}/console")
    if dev:
        say("", "Development certificates and data are in ./mimids-dev/. Try next, in another terminal:")
        say(f"  cd {shlex.quote(os.getcwd())}")
        say(f"  {program()} user add alice")
        say(f"  {program()} contact alice")
        say(f"  curl --cacert mimids-dev/ca.pem {config.listen.public_url}/.well-known/mimi-ds")
    sys.stdout.flush()
