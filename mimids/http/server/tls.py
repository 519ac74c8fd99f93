"""Certificates: what we show, whom we believe, and which provider is calling.

A trust file vouches for the providers it was given for: `[tls] trust` (or the system's roots) for all that have none
of their own, `providers.NAME.trust` for NAME alone, in both directions.
"""

from __future__ import annotations

import re
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import attrs
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mimids.errors import CertificateMismatch, CertificateRequired
from mimids.wire.ids import ProviderId, provider_id

ALPN: Final = ["http/1.1"]  # no HTTP/2 (http: listeners)
_FROM: Final = re.compile(r"mimi@([A-Za-z0-9.-]+)")


class CertificateFileError(Exception):
    """A certificate, key or trust file that cannot be used; says which, and why."""


@attrs.frozen
class Pair:
    """A certificate chain, leaf first, and its unencrypted private key, as PEM files."""

    certificate: Path
    private_key: Path


@attrs.frozen
class Trust:
    """Who vouches for other providers, as PEM files."""

    general: Path | None = None  # None: the system's roots
    providers: Mapping[ProviderId, Path] = attrs.field(factory=dict)  # vouches for this one only, and alone


# --- the provider that calls ------------------------------------------------------------------------------------


def dns_names(certificate: bytes) -> frozenset[ProviderId]:
    """Return the dNSNames of a DER certificate that can name a provider; wildcards never do (http: between-providers).

    Other names, and a certificate that cannot be read, add nothing.
    """
    try:
        extensions = x509.load_der_x509_certificate(certificate).extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return frozenset()
    return frozenset(name for name in map(_provider_name, names) if name is not None)


def caller(names: frozenset[ProviderId] | None, from_header: str | None) -> ProviderId:
    """Return the provider that calls: the one in `From: mimi@DOMAIN`, else the only name (http: between-providers).

    `names` are those that the client certificate was vouched for, None without a certificate. Raises
    `CertificateRequired` or `CertificateMismatch`.
    """
    if names is None:
        raise CertificateRequired
    if from_header is None:
        if len(names) != 1:
            raise CertificateMismatch(f"the certificate names {len(names)} providers, and there is no From")
        return next(iter(names))
    match = _FROM.fullmatch(from_header.strip())
    domain = _provider_name(match[1]) if match else None
    if domain is None:
        raise CertificateMismatch("From is not mimi@DOMAIN")
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
    """The verified certificate of a client, and the names it was vouched for."""

    der: bytes
    names: frozenset[ProviderId]


@attrs.frozen
class ServerCredentials:
    """What the files of a `ServerTls` said when they were read; a connection keeps the one it began with."""

    context: ssl.SSLContext
    general: frozenset[bytes] | None  # DER of the certificates in Trust.general; None: the system's
    pinned: Mapping[ProviderId, frozenset[bytes]]

    def peer(self, connection: ssl.SSLObject) -> PeerCertificate | None:
        """Return who is at the other end, after the handshake; None if it showed no certificate."""
        leaf = connection.getpeercert(binary_form=True)
        if leaf is None:
            return None
        chain = _verified_chain(connection)
        general = self._is_general(chain)
        names = frozenset(
            name for name in dns_names(leaf) if (chain & self.pinned[name] if name in self.pinned else general)
        )
        return PeerCertificate(leaf, names)

    def _is_general(self, chain: frozenset[bytes]) -> bool:
        if self.general is not None:
            return bool(chain & self.general)
        return not any(chain & roots for roots in self.pinned.values())


class ServerTls:
    """The certificate of a listener; with `clients`, one is asked of the client too, and may be withheld.

    `reload()` reads all files again, for connections accepted from then on. Tickets are not issued: each connection
    proves its certificate afresh, and nothing is kept for connections that ended.
    """

    def __init__(self, pair: Pair, *, clients: Trust | None = None) -> None:
        self._pair = pair
        self._clients = clients
        self.current = self._read()

    def reload(self) -> None:
        """Take up renewed files; on `CertificateFileError` the old ones stay in use."""
        self.current = self._read()

    def _read(self) -> ServerCredentials:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3  # BCP 195: new protocols require it
        context.num_tickets = 0
        context.set_alpn_protocols(ALPN)
        _show(context, self._pair)
        if self._clients is None:
            return ServerCredentials(context, None, {})
        context.verify_mode = ssl.CERT_OPTIONAL
        general = _believe(context, self._clients.general)
        pinned = {name: _believe(context, path) for name, path in self._clients.providers.items()}
        return ServerCredentials(context, general if self._clients.general else None, pinned)


def _verified_chain(connection: ssl.SSLObject) -> frozenset[bytes]:
    """Return the DER certificates from the leaf to the one in a trust file, as OpenSSL verified them."""
    if sys.version_info >= (3, 13):
        return frozenset(connection.get_verified_chain())
    # Before 3.13 the ssl module has this call, and only its wrapper is missing (python/cpython#109109).
    chain = cast("Any", connection)._sslobj.get_verified_chain()
    return frozenset(ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in chain)


# --- the client's side ------------------------------------------------------------------------------------------


class ClientTls:
    """Contexts to reach other providers with: `pair` is shown to them, if given (the relay shows none)."""

    def __init__(self, trust: Trust, pair: Pair | None = None) -> None:
        self._trust = trust
        self._pair = pair
        self._contexts = self._read()

    def context(self, provider: ProviderId) -> ssl.SSLContext:
        """Return the context for `provider`: the same object for all that have no trust file of their own.

        It checks the name that it is told (SNI), so where `providers.NAME.url` points elsewhere that name has to be
        given beside the address.
        """
        return self._contexts.get(provider) or self._contexts[None]

    def reload(self) -> None:
        """Take up renewed files; contexts handed out before stay as they are. May raise `CertificateFileError`."""
        self._contexts = self._read()

    def _read(self) -> dict[ProviderId | None, ssl.SSLContext]:
        contexts: dict[ProviderId | None, ssl.SSLContext] = {None: self._make(self._trust.general)}
        for name, path in self._trust.providers.items():
            contexts[name] = self._make(path)
        return contexts

    def _make(self, trusted: Path | None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols(ALPN)
        _believe(context, trusted)
        if self._pair is not None:
            _show(context, self._pair)
        return context


# --- files ------------------------------------------------------------------------------------------------------


def _show(context: ssl.SSLContext, pair: Pair) -> None:
    try:
        # A password that is wrong for sure: else OpenSSL would ask for one on the terminal.
        context.load_cert_chain(pair.certificate, pair.private_key, password="")
    except (OSError, ValueError) as error:
        raise CertificateFileError(f"{pair.certificate} with {pair.private_key}: {_reason(error)}") from error


def _believe(context: ssl.SSLContext, trusted: Path | None) -> frozenset[bytes]:
    """Let the file's certificates vouch in `context`, and return them as DER; nothing for the system's roots."""
    if trusted is None:
        context.set_default_verify_paths()
        return frozenset()
    try:
        certificates = [
            each.public_bytes(Encoding.DER) for each in x509.load_pem_x509_certificates(trusted.read_bytes())
        ]
        context.load_verify_locations(cadata=b"".join(certificates))
    except (OSError, ValueError) as error:
        raise CertificateFileError(f"{trusted}: {_reason(error)}") from error
    # A file may name an intermediate, or the very certificate of a provider, and mean just that.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return frozenset(certificates)


def _reason(error: Exception) -> str:
    """Say it in words: OpenSSL's reasons look like KEY_VALUES_MISMATCH."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not a PEM file of the kind that is wanted").replace("_", " ").lower()
    return getattr(error, "strerror", None) or str(error)
