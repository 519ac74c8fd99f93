"""Certificates that mimids issues itself: an authority's certificate, and pairs for TLS servers and TLS clients.

They are for `serve --dev`, `demo`, tests, and providers that trust each other without a public authority. Public
authorities stop issuing certificates for client use, so many providers will use a pair made by `init` for their calls
to other providers.
"""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import attrs
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS: Final = 3650
PAIR_DAYS: Final = 825  # the longest validity that client platforms accept from a private authority
_CLOCK_SKEW: Final = timedelta(hours=1)


@attrs.frozen
class IssuedCertificate:
    """A certificate with its private key."""

    certificate: x509.Certificate
    private_key: ec.EllipticCurvePrivateKey = attrs.field(repr=False)

    def write(self, certificate: Path, private_key: Path) -> None:
        """Write both as PEM; only the owner can read the key. Raise `FileExistsError` if a file exists."""
        encoded = self.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_new(private_key, encoded, mode=0o600)
        write_new(certificate, self.certificate.public_bytes(Encoding.PEM))


@attrs.frozen
class Authority(IssuedCertificate):
    """A certificate authority."""

    def issue(self, names: Sequence[str], addresses: Sequence[str] = (), *, days: int = PAIR_DAYS) -> IssuedCertificate:
        """Return a certificate and key for these dNSNames and IP addresses, for serverAuth and clientAuth."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
        alternatives += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        built = (
            _builder(names[0], self.certificate.subject, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(purposes, critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.private_key.public_key()), critical=False
            )
        )
        return IssuedCertificate(built.sign(self.private_key, SHA256()), key)


def new_authority(name: str) -> Authority:
    """Make an authority with a new key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    built = (
        _builder(name, subject, key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return Authority(built.sign(key, SHA256()), key)


def read_authority(certificate: Path, private_key: Path) -> Authority:
    """Read an authority from two PEM files; raise `OSError`, or `ValueError` if they do not contain one."""
    key = load_pem_private_key(private_key.read_bytes(), None)
    found = x509.load_pem_x509_certificate(certificate.read_bytes())
    if not isinstance(key, ec.EllipticCurvePrivateKey) or found.public_key() != key.public_key():
        raise ValueError(f"{private_key} is not the key of {certificate}")
    return Authority(found, key)


def replace(issued: IssuedCertificate, certificate: Path, private_key: Path) -> None:
    """Replace both files of a pair, each in one step; they keep their owners and modes.

    The key is replaced first. A server that reads the files in between finds that key and certificate do not match. It
    keeps the old pair, and reads the files again later.
    """
    encoded = issued.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for path, content in ((private_key, encoded), (certificate, issued.certificate.public_bytes(Encoding.PEM))):
        present = path.stat()
        new = path.with_name(f".{path.name}.new")
        new.unlink(missing_ok=True)
        try:
            write_new(new, content, mode=0o600)
            os.chown(new, present.st_uid, present.st_gid)
            new.chmod(stat.S_IMODE(present.st_mode))
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)


def write_new(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Create a file with this mode and write it; raise `FileExistsError` if it exists."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _builder(name: str, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])]))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
