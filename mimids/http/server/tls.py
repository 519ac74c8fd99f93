"""TLS: our certificate, trust in other providers' certificates, and which provider is calling.

`[tls] trust` (or the system's roots) is trusted for all providers without a trust file of their own;
`providers.NAME.trust` is trusted for NAME alone, and nothing else is trusted for NAME. Both rules apply to incoming and
outgoing connections.
"""

from __future__ import annotations

import re
import ssl
import sys
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any, Final, cast

import attrs
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mimids.errors import CertificateMismatch, CertificateRequired
from mimids.wire.ids import ProviderId, provider_id

ALPN: Final = ["http/1.1"]  # no HTTP/2 (http: listeners)
# OpenSSL's errors for a key that does not belong to the certificate: a key of the same type, and of another type.
NOT_THE_KEY: Final = ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
_FROM: Final = re.compile(r"mimi@([A-Za-z0-9.-]+)")


class CertificateFileError(Exception):
    """A certificate, key or trust file cannot be used; the message names the file and says why."""


@attrs.frozen
class Pair:
    """A certificate chain, leaf first, and its unencrypted private key, as PEM files."""

    certificate: Path
    private_key: Path


@attrs.frozen
class Trust:
    """The PEM files of certificates that are trusted for other providers."""

    general: Path | None = None  # None: the system's roots
    providers: Mapping[ProviderId, Path] = attrs.field(factory=dict)  # for one provider each, instead of `general`


# --- the provider that calls ------------------------------------------------------------------------------------


def dns_names(certificate: bytes) -> frozenset[ProviderId]:
    """Return the dNSNames of a DER certificate that are provider names (http: between-providers).

    Wildcards and all other names are left out. A certificate that cannot be parsed has no names.
    """
    try:
        extensions = x509.load_der_x509_certificate(certificate).extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return frozenset()
    return frozenset(name for name in map(_provider_name, names) if name is not None)


def caller(names: frozenset[ProviderId] | None, from_header: str | None) -> ProviderId:
    """Return the calling provider (http: between-providers).

    It is the provider in `From: mimi@DOMAIN`, else the only name in the certificate.

    `names` are the names that the client certificate is trusted for, None without a certificate. Raises
    `CertificateRequired` or `CertificateMismatch`.
    """
    if names is None:
        raise CertificateRequired
    if from_header is None:
        if len(names) != 1:
            raise CertificateMismatch(
                f"the certificate names {len(names)} providers, and no From header says which one calls"
            )
        return next(iter(names))
    match = _FROM.fullmatch(from_header.strip())
    domain = _provider_name(match[1]) if match else None
    if domain is None:
        raise CertificateMismatch("the From header is not mimi@DOMAIN")
    if domain not in names:
        raise CertificateMismatch
    return domain


def _provider_name(text: str) -> ProviderId | None:
    try:
        return provider_id(text.lower())
    except ValueError:
        return None


# --- the server's side ------------------------------------------------------------------------------------------


@attrs.frozen
class PeerCertificate:
    """The verified certificate of a client, and the provider names it is trusted for."""

    der: bytes
    names: frozenset[ProviderId]
    chain: frozenset[bytes] = frozenset()  # DER, from the leaf to the trusted one
    valid_until: float = inf  # seconds since the epoch: the first certificate of the chain ends then


@attrs.frozen
class ServerCredentials:
    """The contents of a `ServerTls`'s files when they were read.

    A connection keeps the credentials with which it started.
    """

    context: ssl.SSLContext
    general: frozenset[bytes] | None  # DER of the certificates in Trust.general; None: the system's
    pinned: Mapping[ProviderId, frozenset[bytes]]

    def peer(self, connection: ssl.SSLObject) -> PeerCertificate | None:
        """Return the client's certificate after the handshake; None if it presented none."""
        leaf = connection.getpeercert(binary_form=True)
        if leaf is None:
            return None
        chain = _verified_chain(connection)
        return PeerCertificate(leaf, self.names(leaf, chain), chain, _end(chain))

    def names(self, leaf: bytes, chain: frozenset[bytes]) -> frozenset[ProviderId]:
        """Return the provider names that a verified certificate is trusted for."""
        general = self._is_general(chain)
        return frozenset(
            name for name in dns_names(leaf) if (chain & self.pinned[name] if name in self.pinned else general)
        )

    def _is_general(self, chain: frozenset[bytes]) -> bool:
        if self.general is not None:
            return bool(chain & self.general)
        return not any(chain & roots for roots in self.pinned.values())


class ServerTls:
    """The TLS side of a listener. With `clients`, it asks clients for a certificate; they need not present one.

    `reload()` reads all files again, for later connections. No session tickets are issued: every connection verifies
    the certificate, and nothing is kept for closed connections.
    """

    def __init__(self, pair: Pair, *, clients: Trust | None = None) -> None:
        self._pair = pair
        self._clients = clients
        self.current = self._read()

    def reload(self) -> None:
        """Read the files again. If this raises `CertificateFileError`, the old certificates stay in use.

        There is one exception: the certificates of a trust file that was removed are no longer trusted, even though the
        removal is reported as an error.
        """
        removed: list[Path] = []
        self.current = self._read(removed)
        _report(removed)

    def still_trusts(self, peer: PeerCertificate, credentials: ServerCredentials, now: float) -> bool:
        """Tell whether the certificates of a kept connection are still valid, and trusted for the same names.

        `credentials` are those of the connection's handshake, `now` is in seconds since the epoch.
        """
        if now >= peer.valid_until:
            return False
        current = self.current
        return current is credentials or current.names(peer.der, peer.chain) == peer.names

    def _read(self, removed: list[Path] | None = None) -> ServerCredentials:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3  # BCP 195 requires it of new protocols
        context.num_tickets = 0
        context.set_alpn_protocols(ALPN)
        _present(context, self._pair)
        if self._clients is None:
            return ServerCredentials(context, None, {})
        context.verify_mode = ssl.CERT_OPTIONAL
        general = _trust(context, self._clients.general, removed)
        pinned = {name: _trust(context, path, removed) for name, path in self._clients.providers.items()}
        return ServerCredentials(context, general if self._clients.general else None, pinned)


def certificates_end(connection: ssl.SSLObject) -> float:
    """Return the earliest end of a certificate in the peer's verified chain, in seconds since the epoch.

    A certificate that OpenSSL verifies but `cryptography` cannot parse counts as expired.
    """
    return _end(_verified_chain(connection))


def _end(chain: frozenset[bytes]) -> float:
    try:
        certificates = [x509.load_der_x509_certificate(each) for each in chain]
    except ValueError:
        return -inf
    return min((each.not_valid_after_utc.timestamp() for each in certificates), default=inf)


def _verified_chain(connection: ssl.SSLObject) -> frozenset[bytes]:
    """Return the DER certificates of the chain that OpenSSL verified, from the leaf to the trusted certificate."""
    if sys.version_info >= (3, 13):
        return frozenset(connection.get_verified_chain())
    # Before Python 3.13 only the public wrapper of this call is missing (python/cpython#109109).
    chain = cast("Any", connection)._sslobj.get_verified_chain()
    return frozenset(ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in chain)


# --- the client's side ------------------------------------------------------------------------------------------


class ClientTls:
    """TLS contexts for calls to other providers; they present `pair`, if given (the relay presents none)."""

    def __init__(self, trust: Trust, pair: Pair | None = None) -> None:
        self._trust = trust
        self._pair = pair
        self._contexts = self._read()
        self._lacks_roots = trust.general is None  # the system's roots: read when needed, because it takes long

    def context(self, provider: ProviderId) -> ssl.SSLContext:
        """Return the context for `provider`; all providers without a trust file of their own share one object.

        The context checks the server name that the caller passes. If `providers.NAME.url` names another host, connect
        to that host, but pass the provider's name as server name.
        """
        own = self._contexts.get(provider)
        if own is None and self._lacks_roots:
            self._contexts[None].set_default_verify_paths()
            self._lacks_roots = False
        return own or self._contexts[None]

    def reload(self) -> None:
        """Read the files again; contexts returned before stay as they are. May raise `CertificateFileError`.

        If a trust file was removed, its certificates are no longer trusted. After any other error nothing changes.
        """
        removed: list[Path] = []
        self._contexts = self._read(removed)
        self._lacks_roots = self._trust.general is None
        _report(removed)

    def _read(self, removed: list[Path] | None = None) -> dict[ProviderId | None, ssl.SSLContext]:
        contexts: dict[ProviderId | None, ssl.SSLContext] = {None: self._make(self._trust.general, removed)}
        for name, path in self._trust.providers.items():
            contexts[name] = self._make(path, removed)
        return contexts

    def _make(self, trusted: Path | None, removed: list[Path] | None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols(ALPN)
        if trusted is not None:
            _trust(context, trusted, removed)
        if self._pair is not None:
            _present(context, self._pair)
        return context


# --- files ------------------------------------------------------------------------------------------------------


def _present(context: ssl.SSLContext, pair: Pair) -> None:
    try:
        # OpenSSL would ask on the terminal for the password of an encrypted key; with a wrong password, it fails.
        context.load_cert_chain(pair.certificate, pair.private_key, password="")
    except (OSError, ValueError) as error:
        if isinstance(error, ssl.SSLError) and error.reason in NOT_THE_KEY:
            raise CertificateFileError(f"{pair.private_key} is not the key of {pair.certificate}") from error
        raise CertificateFileError(_fault_of(pair) or f"{pair.private_key}: {_reason(error)}") from error


def _fault_of(pair: Pair) -> str | None:
    """Say which file of a pair cannot be read or has no certificate; return None if only the key can be at fault."""
    try:
        certificate, _ = [file.read_bytes() for file in (pair.certificate, pair.private_key)]
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    try:
        x509.load_pem_x509_certificates(certificate)
    except ValueError:
        return f"{pair.certificate} has no PEM certificate"
    return None


def trust_file(context: ssl.SSLContext, trusted: Path) -> None:
    """Trust the certificates of a file too; raise `CertificateFileError` if the file cannot be used."""
    _trust(context, trusted, None)


def _trust(context: ssl.SSLContext, trusted: Path | None, removed: list[Path] | None) -> frozenset[bytes]:
    """Trust the certificates of a file in `context` and return them as DER; for None, trust the system's roots.

    A file that does not exist is added to `removed`, and adds no trust; if `removed` is None, that is an error.
    """
    if trusted is None:
        context.set_default_verify_paths()
        return frozenset()
    if removed is not None and not trusted.exists():
        removed.append(trusted)
        return frozenset()
    try:
        certificates = [
            each.public_bytes(Encoding.DER) for each in x509.load_pem_x509_certificates(trusted.read_bytes())
        ]
        context.load_verify_locations(cadata=b"".join(certificates))
    except (OSError, ValueError) as error:
        raise CertificateFileError(f"{trusted}: {_reason(error)}") from error
    # The file may hold an intermediate certificate, or the certificate of a provider itself.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return frozenset(certificates)


def _report(removed: list[Path]) -> None:
    if removed:
        names = ", ".join(map(str, dict.fromkeys(removed)))
        raise CertificateFileError(f"removed: {names}; put the file back: until then its certificates are not trusted")


def _reason(error: Exception) -> str:
    """Return the reason of an error in words; OpenSSL's own reasons look like BAD_END_LINE."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not a PEM file of the expected kind").replace("_", " ").lower()
    return getattr(error, "strerror", None) or str(error)
