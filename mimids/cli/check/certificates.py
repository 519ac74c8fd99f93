"""Checks of the certificates: names, purpose, key, and time of expiry."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from mimids.cli.check.finding import Finding, ok, warning, wrong
from mimids.config import Config
from mimids.http.server.tls import dns_names

RENEW_DAYS: Final = 14
_BOTH: Final = "`mimids init` issues one for both purposes; or set client_certificate and client_private_key in [tls]"
_READABLE_BY_OTHERS: Final = 0o077


def certificates(config: Config) -> Iterator[Finding]:
    """Check the pair of the listeners, the pair for calls to other providers, and the trusted authorities."""
    tls = config.tls
    yield from _pair(config, "certificate", tls.certificate, tls.private_key, server=True, client=False)
    certificate, private_key = tls.presented
    if certificate == tls.certificate:
        yield from _purpose("client certificate", certificate, client=True)
    else:
        yield from _pair(config, "client certificate", certificate, private_key, server=False, client=True)
    trusted = [tls.trust, *(peer.trust for peer in config.providers.values())]
    yield from (_trust(path) for path in dict.fromkeys(trusted) if path is not None)


def _pair(
    config: Config, check: str, certificate: Path, private_key: Path, *, server: bool, client: bool
) -> Iterator[Finding]:
    try:
        chain = x509.load_pem_x509_certificates(certificate.read_bytes())
    except (OSError, ValueError) as error:
        fix = "set its path in [tls]; `mimids init` issues a certificate"
        yield wrong(check, f"{certificate} cannot be read: {_reason(error)}", fix)
        return
    leaf = chain[0]
    try:
        key = load_pem_private_key(private_key.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        yield wrong(
            check, f"{private_key} cannot be read: {_reason(error)}", "the key must be a PEM file without a password"
        )
        return
    if key.public_key() != leaf.public_key():
        yield wrong(
            check,
            f"{private_key} is not the key of {certificate}",
            "set certificate and private_key in [tls] to files that belong together",
        )
    if private_key.stat().st_mode & _READABLE_BY_OTHERS:
        yield warning(check, f"other users of this machine can read {private_key}", f"chmod 600 {private_key}")
    names = dns_names(leaf.public_bytes(Encoding.DER))
    if config.provider not in names:
        found = ", ".join(sorted(names)) or "no domain"
        yield wrong(
            check,
            f"{certificate} is for {found}, not for {config.provider}",
            "get a certificate with this dNSName; wildcards do not count",
        )
    yield _validity(check, certificate, chain)
    if server:
        yield from _purpose(check, certificate, client=False)
    if client:
        yield from _purpose(check, certificate, client=True)


def _validity(check: str, path: Path, chain: list[x509.Certificate]) -> Finding:
    now = datetime.now(UTC)
    ends = min(each.not_valid_after_utc for each in chain)
    if max(each.not_valid_before_utc for each in chain) > now:
        return wrong(check, f"{path} is not valid yet", "check the clock of this machine, or wait")
    if ends <= now:
        return wrong(
            check, f"{path} expired on {ends:%Y-%m-%d}", "renew it; a running server loads the new file by itself"
        )
    if ends - now < timedelta(days=RENEW_DAYS):
        return warning(
            check, f"{path} expires on {ends:%Y-%m-%d}", "renew it; a running server loads the new file by itself"
        )
    return ok(check, f"{path.name} is valid until {ends:%Y-%m-%d}")


def _purpose(check: str, path: Path, *, client: bool) -> Iterator[Finding]:
    """Check whether a certificate may be used by a server, or (with `client`) for calls to other providers.

    Public authorities stop issuing certificates for clientAuth. A provider that uses such an authority needs a second
    certificate and key for its calls.
    """
    name, purpose = (
        ("clientAuth", ExtendedKeyUsageOID.CLIENT_AUTH) if client else ("serverAuth", ExtendedKeyUsageOID.SERVER_AUTH)
    )
    try:
        leaf = x509.load_pem_x509_certificates(path.read_bytes())[0]
    except (OSError, ValueError):
        return  # reported already
    if _allows(leaf, purpose):
        yield ok(check, f"{path.name} may be used for {name}")
    elif client:
        yield wrong(check, f"{path} may not be used for {name}: other providers will refuse us", _BOTH)
    else:
        yield wrong(
            check, f"{path} may not be used for {name}", "get a certificate for this purpose; `mimids init` issues one"
        )


def _allows(leaf: x509.Certificate, purpose: ObjectIdentifier) -> bool:
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True  # RFC 5280 section 4.2.1.12: without the extension, any purpose
    return purpose in usage or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usage


def _trust(path: Path) -> Finding:
    try:
        count = len(x509.load_pem_x509_certificates(path.read_bytes()))
    except (OSError, ValueError) as error:
        return wrong("trust", f"{path} cannot be read: {_reason(error)}", "the file must contain certificates in PEM")
    return ok("trust", f"{path.name} has {count} trusted certificate{'' if count == 1 else 's'}")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).partition(".")[0]
