"""The user id in a credential and the provider's domain in a user id; None where either is not certain."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mimids.mls.code_points import CredentialType
from mimids.mls.faults import Fault
from mimids.wire.ids import ProviderId, UserId, provider_id

if TYPE_CHECKING:
    from mimids.mls.leaf_node import Credential

# The name of a user or device: a path segment of RFC 3986 section 3.3.
_SEGMENT: Final = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+"
_REMEMBERED_OCTETS: Final = 4096  # size of the largest certificate that is cached after parsing
_USER: Final = re.compile(rf"(mimi://([a-z0-9.-]+)/u/{_SEGMENT})(/d/{_SEGMENT})?")


def user_id(credential: Credential) -> UserId | None:
    """Return the user id that a credential names.

    A BasicCredential must be a user id, optionally followed by /d/DEVICE. An X509Credential must name exactly one user
    by MIMI URI in its end entity's subjectAltName. Returns None for anything else, including unknown credential types.
    """
    if credential.credential_type is CredentialType.BASIC and isinstance(credential.content, bytes):
        return _without_device(credential.content)
    if credential.credential_type is CredentialType.X509 and isinstance(credential.content, tuple):
        if not credential.content:
            return None
        certificate = _certificate(credential.content[0].cert_data)
        return None if certificate is None else _subject(certificate)
    return None


def provider_of(user: bytes) -> ProviderId | None:
    """Return the provider's domain in a user id, None if `user` is not a user id."""
    found = _match(user)
    return None if found is None or found[3] is not None else provider_id(found[2])


def _match(octets: bytes) -> re.Match[str] | None:
    try:
        found = _USER.fullmatch(octets.decode("ascii"))
        if found is not None:
            provider_id(found[2])
    except ValueError:  # not ASCII, or not a domain name
        return None
    return found


def _without_device(octets: bytes) -> UserId | None:
    found = _match(octets)
    return None if found is None else UserId(found[1].encode())


def _subject(certificate: x509.Certificate) -> UserId | None:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError):
        return None
    users = {_without_device(uri.encode()) for uri in uris if uri.startswith("mimi://")}
    return users.pop() if len(users) == 1 else None


def _certificate(der: bytes) -> x509.Certificate | None:
    return _parsed(der) if len(der) <= _REMEMBERED_OCTETS else _parsed.__wrapped__(der)


@lru_cache(maxsize=1024)
def _parsed(der: bytes) -> x509.Certificate | None:
    try:
        return x509.load_der_x509_certificate(der)
    except (ValueError, x509.InvalidVersion):
        return None


def certificate_fault(credential: Credential, signature_key: bytes) -> Fault | None:
    """Check that an X.509 credential certifies the leaf's signature key (RFC 9420 section 5.3); return the fault."""
    if credential.credential_type is not CredentialType.X509:
        return None
    chain = credential.content
    if not isinstance(chain, tuple) or not chain:
        return Fault("the X.509 credential has no certificate", "RFC 9420 section 5.3")
    certificate = _certificate(chain[0].cert_data)
    if certificate is None:
        return Fault("the end-entity certificate does not parse", "RFC 9420 section 5.3")
    if signature_key not in _key_octets(certificate):
        return Fault("the certificate's key is not the leaf's signature key", "RFC 9420 section 5.3")
    return None


def _key_octets(certificate: x509.Certificate) -> tuple[bytes, ...]:
    """Return the encodings of the certificate's key that a leaf may have (see `Suite.signature_key_fits`)."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):  # no suite has keys of this kind
        return ()
    if isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        return (key.public_bytes(Encoding.Raw, PublicFormat.Raw),)
    if isinstance(key, ec.EllipticCurvePublicKey):
        formats = (PublicFormat.UncompressedPoint, PublicFormat.CompressedPoint)
        return tuple(key.public_bytes(Encoding.X962, each) for each in formats)
    return ()
