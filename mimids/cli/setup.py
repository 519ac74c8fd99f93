"""`mimids init` and `mimids migrate`: from an empty directory to a provider that serves."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import attrs
import click

from mimids.cli.certificates import new_authority, read_authority, write_new
from mimids.cli.places import CONFIG_FILE, config_option, example, json_option, load_config, socket_fits
from mimids.cli.progress import seconds
from mimids.cli.refusals import CommandRefused, or_refused
from mimids.cli.showing import show
from mimids.config import Config, load, parse
from mimids.store.engine import lock
from mimids.store.engine import migrate as migrations
from mimids.wire.ids import ProviderId, provider_id

AUTHORITY: Final = ("ca.pem", "ca.key")
DATA: Final = "data"


@attrs.frozen(kw_only=True)
class SetupPlan:
    """What a new provider's directory is to hold."""

    provider: ProviderId
    public: str = "127.0.0.1:8443"
    client: str = "127.0.0.1:8444"
    operator: str = "127.0.0.1:8445"
    public_url: str | None = None
    allow: tuple[str, ...] = ()
    peers: tuple[tuple[str, str], ...] = ()  # name and URL
    certificate: Path | None = None  # a pair that is there already
    private_key: Path | None = None
    authority: Path | None = None  # the certificate of one that issues the pair; its key beside it
    note: str = "What is not here has its default; config.example.toml shows every key, with its reason."
    further: str = ""  # more of the file


def make_provider(directory: Path, plan: SetupPlan) -> Config:
    """Make a directory with configuration, certificates and an empty database; return the configuration.

    Nothing that is there is replaced: raises `CommandRefused`, or `ConfigError` where the plan is none, with nothing
    made.
    """
    path = directory / CONFIG_FILE
    if path.exists():
        raise CommandRefused(
            f"{path} is there already", "`mimids check` looks at it; choose another directory for another one"
        )
    if not socket_fits(directory / DATA / "operator.sock"):
        raise CommandRefused(
            f"a socket within {directory.absolute()} would have too long a path", "choose a shorter one"
        )
    parse(tomllib.loads(_configuration(plan)), directory)
    directory.mkdir(parents=True, exist_ok=True)
    make_pair(directory, plan)
    write_configuration(directory, plan)
    config = load(path)
    bring_up(config)
    return config


def bring_up(config: Config) -> list[migrations.Migration]:
    """Make the database, or bring it up to this code; return what was applied."""
    config.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with lock.hold(config.data_dir):
        return migrations.migrate(config.database)


def make_pair(directory: Path, plan: SetupPlan) -> None:
    """Issue the provider's pair where it has none."""
    if plan.certificate is not None:
        return
    if plan.authority is None:
        authority = new_authority(f"{plan.provider} (own authority)")
        authority.write(*(directory / name for name in AUTHORITY))
    else:
        authority = read_authority(plan.authority, plan.authority.with_suffix(".key"))
    pair = authority.issue([plan.provider], ["127.0.0.1", "::1"])
    pair.write(directory / f"{plan.provider}.pem", directory / f"{plan.provider}.key")


def write_configuration(directory: Path, plan: SetupPlan) -> None:
    """Write the file; raise `FileExistsError` rather than replace one."""
    write_new(directory / CONFIG_FILE, _configuration(plan).encode())


def _configuration(plan: SetupPlan) -> str:
    lines = [
        f"# {plan.note}",
        f'provider = "{plan.provider}"',
        f'data_dir = "{DATA}"',
        "",
        "[listen]",
        f'public = "{plan.public}"',
        *([f'public_url = "{plan.public_url}"'] if plan.public_url else []),
        f'client = "{plan.client}"',
        f'operator = "{plan.operator}"',
        "",
        "[tls]",
    ]
    if plan.certificate is not None and plan.private_key is not None:
        lines += [f'certificate = "{plan.certificate.absolute()}"', f'private_key = "{plan.private_key.absolute()}"']
    trust = Path(AUTHORITY[0]) if plan.certificate is None else None  # None: the system's authorities
    if plan.authority is not None:
        trust = plan.authority.absolute()
    if trust is not None:
        lines.append(f'trust = "{trust}"                # who vouches for other providers')
    lines += ["", "[federation]", f"allow = [{', '.join(_quoted(plan.allow))}]"]
    for name, url in plan.peers:
        lines += ["", f'[providers."{name}"]', f'url = "{url}"']
    return "\n".join([*lines, plan.further])


def _quoted(names: Sequence[str]) -> list[str]:
    return [f'"{name}"' for name in names]


def _domain(_: click.Context, __: click.Parameter, value: str | None) -> ProviderId | None:
    try:
        return None if value is None else provider_id(value)
    except ValueError as error:
        raise click.BadParameter("a domain name in lower case, without a port, such as a.example") from error


def _peer(_: click.Context, __: click.Parameter, values: Sequence[str]) -> tuple[tuple[str, str], ...]:
    pairs = tuple(value.partition("=")[::2] for value in values)
    if not all(name and url.startswith("https://") for name, url in pairs):
        raise click.BadParameter("such as b.example=https://127.0.0.1:9443")
    return pairs


@example(
    "mimids init a --provider a.example",
    "mimids init b --provider b.example --ca a/ca.pem --peer a.example=https://127.0.0.1:8443 \\",
    "  --public 127.0.0.1:9443 --client 127.0.0.1:9444 --operator 127.0.0.1:9445",
)
@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--provider", callback=_domain, help="Domain of your users; it cannot change later.")
@click.option("--public", default="127.0.0.1:8443", show_default=True, help="Where other providers reach it.")
@click.option("--client", default="127.0.0.1:8444", show_default=True, help="Where your users' devices reach it.")
@click.option("--operator", default="127.0.0.1:8445", show_default=True, help="Health, metrics, console.")
@click.option("--public-url", help="How others reach --public; default: https://PROVIDER.")
@click.option("--allow", multiple=True, metavar="PROVIDER", help="Deal with this provider; may be repeated.")
@click.option(
    "--peer",
    "peers",
    multiple=True,
    callback=_peer,
    metavar="PROVIDER=URL",
    help="The same, reached at this URL; may be repeated.",
)
@click.option(
    "--certificate",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Use this certificate, with its chain, instead of making one.",
)
@click.option("--private-key", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Its key.")
@click.option(
    "--ca",
    "authority",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Authority that issues the pair (its key beside it, as FILE.key) and vouches for others; default: a new one.",
)
@json_option
def init(
    directory: Path,
    provider: ProviderId | None,
    public: str,
    client: str,
    operator: str,
    public_url: str | None,
    allow: tuple[str, ...],
    peers: tuple[tuple[str, str], ...],
    certificate: Path | None,
    private_key: Path | None,
    authority: Path | None,
    as_json: bool,
) -> None:
    """Make a provider: configuration, certificates, database.

    Asks for the domain if it is not given. Certificates come from an authority of its own unless a pair is named; the
    pair serves both purposes, as server and as client of other providers.
    """
    if (certificate is None) != (private_key is None):
        raise click.UsageError("write both --certificate and --private-key, or neither")
    if provider is None:
        if not sys.stdin.isatty():
            raise click.UsageError("--provider is missing: the domain of your users, such as a.example")
        provider = click.prompt("Domain of your users (it cannot change later)", value_proc=_asked_domain)
    plan = SetupPlan(
        provider=provider,
        public=public,
        client=client,
        operator=operator,
        public_url=public_url,
        allow=(*allow, *(name for name, _ in peers if name not in allow)),
        peers=peers,
        certificate=certificate,
        private_key=private_key,
        authority=authority,
    )
    try:
        config: Config = or_refused(lambda: make_provider(directory, plan))
    except ValueError as error:
        raise CommandRefused(str(error)) from error
    from mimids.cli.check.certificates import certificates  # which nothing else here needs

    file = directory / CONFIG_FILE
    answer = {"provider": config.provider, "config": str(file), "certificate": str(config.tls.certificate)}
    show("init", answer, as_json=as_json)
    for finding in certificates(config):
        if finding.mend is not None:
            click.echo(f"mimids: {finding.what}\n  {finding.mend}", err=True)
    if not as_json:
        click.echo(f"\nTo try next:\n  mimids check --config {file}\n  mimids serve --config {file}")
        click.echo(f"  mimids user add alice --config {file}")


def _asked_domain(value: str) -> ProviderId:
    try:
        return provider_id(value)
    except ValueError as error:
        raise click.UsageError("write it in lower case, without a port, such as a.example") from error


@example("mimids migrate --config mimids.toml")
@click.command()
@config_option
@json_option
def migrate(config_file: Path | None, as_json: bool) -> None:
    """Make the database, or bring it up to this version."""
    config = load_config(config_file)
    with seconds("migrating", quiet=as_json):
        applied = or_refused(lambda: bring_up(config))
    answer = {"database": str(config.database), "applied": [f"{each.version:04}_{each.name}" for each in applied]}
    if as_json:
        show("migrate", answer, as_json=True)
    else:
        for name in answer["applied"]:
            click.echo(f"applied {name}")
        click.echo(f"{config.database} is up to date")
