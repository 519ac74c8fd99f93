"""`mimids cert renew`: issue the provider's certificates again, by the authority that `mimids init` made."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import attrs
import click
from cryptography import x509

from mimids.cli.certificates import PAIR_DAYS, Authority, IssuedCertificate, read_authority, replace
from mimids.cli.places import config_option, config_option_of_group, example, json_option, load_config
from mimids.cli.refusals import CommandRefused, or_refused
from mimids.cli.showing import say, show
from mimids.config import Config

AUTHORITY: Final = "ca.pem"


@config_option_of_group
@click.group()
def cert() -> None:
    """Certificates of this provider."""


@attrs.frozen
class _Pair:
    """A certificate of the configuration, with its key's file."""

    certificate: Path
    private_key: Path
    leaf: x509.Certificate


@example("mimids cert renew", "mimids cert renew --ca /media/key/ca.pem")
@cert.command()
@click.option(
    "--ca",
    "authority_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Authority that issues the certificates; its key is beside it, with the suffix .key. Default: ca.pem beside "
    "the certificate.",
)
@config_option
@json_option
def renew(authority_file: Path | None, config_file: Path | None, as_json: bool) -> None:
    """Issue the certificates of the configuration again, with new keys.

    The authority is the one that `mimids init` made. Certificates of other authorities are not changed. A running
    server uses the new files within `[tls] watch_seconds`, without a restart; `mimids reload` makes it use them at
    once.
    """
    config = load_config(config_file)
    answer = or_refused(lambda: _renew(config, authority_file))
    show("cert renew", answer, as_json=as_json)
    if not as_json:
        say("A running server loads the new files within `[tls] watch_seconds`; `mimids reload` loads them at once.")


def _renew(config: Config, authority_file: Path | None) -> dict[str, object]:
    pairs = list(_pairs(config))
    authority = _authority(authority_file or pairs[0].certificate.parent / AUTHORITY)
    ours = [pair for pair in pairs if pair.leaf.issuer == authority.certificate.subject]
    if not ours:
        issuer = pairs[0].leaf.issuer.rfc4514_string()
        raise CommandRefused(
            f"{pairs[0].certificate} was issued by another authority: {issuer}",
            "renew it at that authority; a running server loads the new files by itself",
        )
    ends = authority.certificate.not_valid_after_utc
    if ends < datetime.now(UTC):
        raise CommandRefused(
            f"the authority itself expired on {ends:%Y-%m-%d}",
            "make another authority with `mimids init DIR`, and give its ca.pem to the other providers",
        )
    renewed = []
    for pair in ours:
        made = authority.issue(*_names(pair.leaf), days=min(PAIR_DAYS, (ends - datetime.now(UTC)).days))
        replace(made, pair.certificate, pair.private_key)
        renewed.append(_told(pair.certificate, made))
    return {"renewed": renewed}


def _told(path: Path, made: IssuedCertificate) -> dict[str, object]:
    return {
        "certificate": str(path),
        "not_after": int(made.certificate.not_valid_after_utc.timestamp() * 1000),
    }


def _pairs(config: Config) -> Iterator[_Pair]:
    """Yield the pair of the listeners and, if it is a different one, the pair for calls to other providers."""
    tls = config.tls
    for certificate, private_key in dict.fromkeys([(tls.certificate, tls.private_key), tls.presented]):
        try:
            leaf = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
        except ValueError as error:
            raise CommandRefused(
                f"{certificate} is not a certificate in PEM: {error}",
                "delete the file, and issue a certificate with `mimids init DIR --provider ... --ca ca.pem`",
            ) from error
        yield _Pair(certificate, private_key, leaf)


def _authority(file: Path) -> Authority:
    try:
        return read_authority(file, file.with_suffix(".key"))
    except FileNotFoundError as error:
        raise CommandRefused(
            f"the authority's file {error.filename} does not exist",
            "name the authority's certificate with --ca FILE; its key must be beside it, with the suffix .key",
        ) from error
    except ValueError as error:
        raise CommandRefused(
            f"{file} and its key cannot be used: {error}", "name another authority with --ca FILE"
        ) from error


def _names(leaf: x509.Certificate) -> tuple[list[str], list[str]]:
    """Return the dNSNames and the IP addresses of a certificate."""
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.DNSName), list(map(str, names.get_values_for_type(x509.IPAddress)))
