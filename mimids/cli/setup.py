"""`mimids init` and `mimids migrate`: set up a provider in an empty directory, and update its database."""

from __future__ import annotations

import secrets
import shlex
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import click

from mimids.cli.certificates import new_authority, read_authority, write_new
from mimids.cli.owners import make_data_dir
from mimids.cli.places import CONFIG_FILE, config_option, example, json_option, load_config, program, socket_fits
from mimids.cli.progress import elapsed
from mimids.cli.refusals import CommandRefused, or_refused
from mimids.cli.showing import say, show
from mimids.config import Config, load, parse
from mimids.ohttp.at_rest import KEY_SIZE
from mimids.store import acknowledged
from mimids.store.engine import access, lock
from mimids.store.engine import migrate as migrations
from mimids.wire.ids import ProviderId, provider_id

AUTHORITY: Final = ("ca.pem", "ca.key")
DATA: Final = "data"
KEY_FILE: Final = "ohttp.key"  # beside the configuration: not in the data directory, and so in no copy of it


@attrs.frozen(kw_only=True)
class SetupPlan:
    """The settings of a new provider."""

    provider: ProviderId
    public: str = "127.0.0.1:8443"
    client: str = "127.0.0.1:8444"
    operator: str = "127.0.0.1:8445"
    public_url: str | None = None
    allow: tuple[str, ...] = ()
    peers: tuple[tuple[str, str], ...] = ()  # name and URL
    certificate: Path | None = None  # an existing certificate with its chain
    private_key: Path | None = None
    authority: Path | None = None  # certificate of the authority that issues the pair; its key is beside it
    note: str = "A key that is not set here has its default; config.example.toml explains every key."
    further: str = ""  # more lines for the file


def make_provider(directory: Path, plan: SetupPlan) -> Config:
    """Create a directory with configuration, certificates, key file and an empty database; return the configuration.

    No existing file is replaced. Raises `CommandRefused`, and `ConfigError` if the plan is not valid; nothing is
    created then.
    """
    path = directory / CONFIG_FILE
    if path.exists():
        raise CommandRefused(
            f"{path} already exists", "choose another directory; `mimids check` checks the provider in this directory"
        )
    if not socket_fits(directory / DATA / "operator.sock"):
        raise CommandRefused(
            f"the path {directory.absolute()} is too long for a Unix socket in it",
            "choose a directory with a shorter path",
        )
    parse(tomllib.loads(_configuration(plan)), directory)
    directory.mkdir(parents=True, exist_ok=True)
    make_pair(directory, plan)
    write_configuration(directory, plan)
    config = load(path)
    migrate_database(config)
    return config


def migrate_database(config: Config) -> list[migrations.Migration]:
    """Create the database, or migrate it to this version; return the migrations that were applied."""
    make_data_dir(config)
    with lock.hold(config.data_dir):
        applied = access.migrate(config.place)
        if applied and isinstance(config.place, Path):
            acknowledged.forget(config.place)  # a migration that rebuilds a table numbers its rows again
        return applied


def make_pair(directory: Path, plan: SetupPlan) -> None:
    """Issue the provider's certificate, unless the plan names one."""
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
    """Write the configuration file, and the key file that it names unless that exists.

    Raises `FileExistsError` if the configuration file exists.
    """
    if not (directory / KEY_FILE).exists():
        write_new(directory / KEY_FILE, f"{secrets.token_hex(KEY_SIZE)}\n".encode(), mode=0o600)
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
        lines.append(f'trust = "{trust}"                # authorities that may certify other providers')
    lines += ["", "[ohttp]", f'key_file = "{KEY_FILE}"                   # encrypts the gateway keys in the database']
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
        raise click.BadParameter("it must be a domain name in lower case, without a port, such as a.example") from error


def _peer(_: click.Context, __: click.Parameter, values: Sequence[str]) -> tuple[tuple[str, str], ...]:
    pairs = tuple(value.partition("=")[::2] for value in values)
    if not all(name and url.startswith("https://") for name, url in pairs):
        raise click.BadParameter("write PROVIDER=URL, such as b.example=https://127.0.0.1:9443")
    return pairs


@example(
    "mimids init a --provider a.example",
    "mimids init b --provider b.example --ca a/ca.pem --peer a.example=https://127.0.0.1:8443 \\",
    "  --public 127.0.0.1:9443 --client 127.0.0.1:9444 --operator 127.0.0.1:9445",
)
@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--provider", callback=_domain, help="The domain of your users. It cannot be changed later.")
@click.option("--public", default="127.0.0.1:8443", show_default=True, help="Address and port for other providers.")
@click.option("--client", default="127.0.0.1:8444", show_default=True, help="Address and port for your users' devices.")
@click.option(
    "--operator", default="127.0.0.1:8445", show_default=True, help="Address and port for health, metrics and console."
)
@click.option("--public-url", help="URL by which others reach --public; default: https://PROVIDER.")
@click.option("--allow", multiple=True, metavar="PROVIDER", help="Allow this other provider; may be repeated.")
@click.option(
    "--peer",
    "peers",
    multiple=True,
    callback=_peer,
    metavar="PROVIDER=URL",
    help="Allow this other provider, and call it at this URL; may be repeated.",
)
@click.option(
    "--certificate",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Use this certificate, with its chain, instead of issuing one.",
)
@click.option(
    "--private-key",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The private key of --certificate.",
)
@click.option(
    "--ca",
    "authority",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Authority that issues the certificate and is trusted for other providers; its key is beside it, with the "
    "suffix .key. Default: a new authority.",
)
@json_option
def init(
    directory: Path,
    provider: ProviderId | None,
    allow: tuple[str, ...],
    peers: tuple[tuple[str, str], ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Set up a provider in DIRECTORY: configuration, certificates, key file, database.

    Without --provider it asks for the domain. Without --certificate it issues a certificate by an authority of its own.
    Such a certificate is valid both for the listeners and for calls to other providers.
    """
    if (options["certificate"] is None) != (options["private_key"] is None):
        raise click.UsageError("--certificate and --private-key belong together: give both, or neither")
    allowed = (*allow, *(name for name, _ in peers if name not in allow))
    plan = SetupPlan(provider=provider or _prompt_for_domain(), allow=allowed, peers=peers, **options)
    try:
        config: Config = or_refused(lambda: make_provider(directory, plan))
    except ValueError as error:
        raise CommandRefused(str(error)) from error
    file = directory / CONFIG_FILE
    answer = {"provider": config.provider, "config": str(file), "certificate": str(config.tls.certificate)}
    show("init", answer, as_json=as_json)
    _warn_of_certificates(config)
    if not as_json:
        of = f"--config {shlex.quote(str(file))}"
        say(
            "",
            "Try next:",
            f"  {program()} check {of}",
            f"  {program()} serve {of}",
            f"  {program()} user add alice {of}",
        )


def _warn_of_certificates(config: Config) -> None:
    from mimids.cli.check.certificates import certificates  # slow to import

    for finding in certificates(config):
        if finding.fix is not None:
            say(f"mimids: {finding.what}", f"  {finding.fix}", err=True)


def _prompt_for_domain() -> ProviderId:
    if not sys.stdin.isatty():
        raise click.UsageError("--provider is missing; give the domain of your users, such as a.example")
    domain: ProviderId = click.prompt("Domain of your users (it cannot be changed later)", value_proc=_prompted_domain)
    return domain


def _prompted_domain(value: str) -> ProviderId:
    try:
        return provider_id(value)
    except ValueError as error:
        raise click.UsageError("write a domain name in lower case, without a port, such as a.example") from error


@example("mimids migrate --config mimids.toml")
@click.command()
@config_option
@json_option
def migrate(config_file: Path | None, as_json: bool) -> None:
    """Create the database, or update it to this version of mimids."""
    config = load_config(config_file)
    with elapsed("migrating", quiet=as_json):
        applied = or_refused(lambda: migrate_database(config))
    answer = {
        "database": access.name_of(config.place),
        "applied": [f"{each.version:04}_{each.name}" for each in applied],
    }
    if as_json:
        show("migrate", answer, as_json=True)
    else:
        for name in answer["applied"]:
            say(f"applied {name}")
        say(f"{answer['database']} is up to date")
