"""The user id in a credential, or None if it is not certain; and the check that a certificate fits its leaf's key."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mimids.mls.code_points import CredentialType
from mimids.mls.faults import Fault
from mimids.mls.suites import ML_DSA_KEYS
from mimids.wire.ids import ProviderId, UserId, device_in, normal_user_id, spelling_fault

if TYPE_CHECKING:
    from mimids.mls.leaf_node import Credential

_REMEMBERED_OCTETS: Final = 4096  # size of the largest certificate that is cached after parsing


def user_of(credential: Credential) -> UserId | None:
    """Return the user that a credential names, in the normal spelling; `misspelled` finds other spellings.

    A BasicCredential must be a user id, optionally followed by /d/DEVICE. An X509Credential must name exactly one user
    by MIMI URI in its end entity's subjectAltName. Returns None for anything else, including unknown credential types.
    """
    users = {normal_user_id(each, device=True) for each in _written(credential)}
    return users.pop() if len(users) == 1 else None


def device_of(credential: Credential) -> str | None:
    """Return the name of the device that follows the user id in a credential as /d/DEVICE; None without one."""
    names = {device_in(each) for each in _written(credential)}
    return names.pop() if len(names) == 1 else None


def misspelled(credential: Credential) -> str | None:
    """Return what is wrong with the spelling of the user id in a credential, None if the spelling is normal."""
    faults = (spelling_fault(each, device=True) for each in _written(credential))
    return next((fault for fault in faults if fault is not None), None)


def provider_of(user: bytes) -> ProviderId | None:
    """Return the provider's domain in a user id, None if `user` is not a user id in its normal spelling."""
    if normal_user_id(user) != user:
        return None
    return ProviderId(user.decode().split("/")[2])


def _written(credential: Credential) -> tuple[bytes, ...]:
    """Return the texts in a credential that should be user ids, as written; the caller checks whether they are."""
    content = credential.content
    if credential.credential_type is CredentialType.BASIC and isinstance(content, bytes):
        return (content,)
    if credential.credential_type is CredentialType.X509 and isinstance(content, tuple) and content:
        certificate = _certificate(content[0].cert_data)
        return () if certificate is None else _subjects(certificate)
    return ()


def _subjects(certificate: x509.Certificate) -> tuple[bytes, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError):
        return ()
    return tuple(uri.encode() for uri in uris if uri.lower().startswith("mimi://"))


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
    if isinstance(key, (ed25519.Ed25519PublicKey, ed448.Ed448PublicKey, *ML_DSA_KEYS)):
        return (key.public_bytes(Encoding.Raw, PublicFormat.Raw),)
    if isinstance(key, ec.EllipticCurvePublicKey):
        formats = (PublicFormat.UncompressedPoint, PublicFormat.CompressedPoint)
        return tuple(key.public_bytes(Encoding.X962, each) for each in formats)
    return ()
