"""The user in a credential, and the check of an X.509 credential against its leaf's key."""

from __future__ import annotations

import datetime
import warnings

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, rsa
from cryptography.utils import CryptographyDeprecationWarning

from mimids.mls.code_points import CredentialType
from mimids.mls.identity import certificate_fault, provider_of, user_of
from mimids.mls.leaf_node import Capabilities, Certificate, Credential, SignaturePublicKey
from mimids.mls.suites import SUITES
from mimids.wire.ids import MLS10
from tests.support.mls_makers import DAY, NOW, YEAR, Signer, key_package, leaf_node

Key = ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
BOB = "mimi://b.example/u/bob"


def certificate(key: Key, *uris: str, names: bool = True) -> bytes:
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime.fromtimestamp(NOW - DAY, datetime.UTC))
        .not_valid_after(datetime.datetime.fromtimestamp(NOW + DAY, datetime.UTC))
    )
    if names:
        general = [x509.UniformResourceIdentifier(uri) for uri in uris] + [x509.DNSName("b.example")]
        builder = builder.add_extension(x509.SubjectAlternativeName(general), critical=True)
    hashed = isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
    return builder.sign(key, hashes.SHA256() if hashed else None).public_bytes(serialization.Encoding.DER)


def x509_credential(*chain: bytes) -> Credential:
    return Credential(CredentialType.X509, tuple(map(Certificate, chain)))


def private_key(code: int, seed: int = 1) -> Key:
    scheme, private = SUITES[code].scheme, Signer.of(code, seed).private
    if scheme == "Ed25519":
        return ed25519.Ed25519PrivateKey.from_private_bytes(private)
    if scheme == "Ed448":
        return ed448.Ed448PrivateKey.from_private_bytes(private)
    if scheme.startswith("ML-DSA"):
        made: Key = getattr(mldsa, f"{scheme.replace('-', '')}PrivateKey").from_seed_bytes(private)
        return made
    curve = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}[scheme]
    return ec.derive_private_key(int.from_bytes(private, "big"), curve)


@pytest.mark.parametrize(
    ("identity", "user"),
    [
        (b"mimi://b.example/u/bob", b"mimi://b.example/u/bob"),
        (b"mimi://b.example/u/bob/d/phone-2", b"mimi://b.example/u/bob"),
        (b"mimi://chat.b.example/u/b%C3%B6b", b"mimi://chat.b.example/u/b%C3%B6b"),
        (b"mimi://b.example/u/bob/d/", None),
        (b"mimi://b.example/u/bob/d/1/d/2", None),
        (b"mimi://b.example/u/", None),
        (b"mimi://b.example/u/bob/", None),
        (b"mimi://b.example/u/bob\n", None),
        (b"mimi://b.example/u/bob?x", None),
        (b"mimi://b.example/u/b%zz", None),
        (b"mimi://b.example/g/bob", None),
        (b"mimi://B.example/u/bob", b"mimi://b.example/u/bob"),
        (b"mimi://b.example:8443/u/bob", None),
        (b"mimi://.b.example/u/bob", None),
        (b"mimi://192.0.2.1/u/bob", None),
        (b"https://b.example/u/bob", None),
        ("mimi://b.example/u/böb".encode(), None),
        (b"\xff\xfe", None),
        (b"", None),
    ],
)
def test_a_basic_credential_is_a_user_id_with_or_without_a_device(identity: bytes, user: bytes | None) -> None:
    assert user_of(Credential(CredentialType.BASIC, identity)) == user


def test_other_credential_types_name_no_user() -> None:
    assert user_of(Credential(CredentialType(0x0A0A), BOB.encode())) is None


@pytest.mark.parametrize(
    ("user", "provider"),
    [(BOB.encode(), "b.example"), (BOB.encode() + b"/d/1", None), (b"bob", None), (b"mimi://b_.example/u/x", None)],
)
def test_the_provider_is_the_domain_of_a_user_id(user: bytes, provider: str | None) -> None:
    assert provider_of(user) == provider


@pytest.mark.parametrize("code", SUITES)
def test_an_x509_credential_of_any_suite_names_the_user_in_its_certificate(code: int) -> None:
    one = Signer.of(code)
    credential = x509_credential(certificate(private_key(code), BOB), b"what issued it")
    assert user_of(credential) == BOB.encode()
    assert certificate_fault(credential, one.public) is None
    if one.suite.scheme.startswith("P-"):
        assert certificate_fault(credential, one.compressed) is None

    capabilities = Capabilities((MLS10,), (one.suite.code,), (), (), (CredentialType.X509,))
    key_package(one, leaf_node(one, credential=credential, capabilities=capabilities)).validate(
        NOW, max_lifetime_s=YEAR
    )


@pytest.mark.parametrize("uris", [(), (BOB, "mimi://b.example/u/rob"), ("https://b.example/u/bob",)])
def test_a_certificate_without_exactly_one_user_names_no_user(uris: tuple[str, ...]) -> None:
    assert user_of(x509_credential(certificate(private_key(1), *uris))) is None


def test_a_certificate_may_name_a_device_and_other_things() -> None:
    uris = (BOB, BOB + "/d/1", "https://b.example/")
    assert user_of(x509_credential(certificate(private_key(1), *uris))) == BOB.encode()
    assert user_of(x509_credential(certificate(private_key(1), names=False))) is None


def test_the_certificates_key_must_be_the_leafs_signature_key() -> None:
    one, other = Signer.of(1), Signer.of(1, seed=2)
    credential = x509_credential(certificate(private_key(1), BOB))
    assert "not the leaf's signature key" in str(certificate_fault(credential, other.public))
    rsa_key = rsa.generate_private_key(65537, 2048)
    assert "not the leaf's" in str(certificate_fault(x509_credential(certificate(rsa_key, BOB)), one.public))
    assert "has no certificate" in str(certificate_fault(x509_credential(), one.public))
    assert "does not parse" in str(certificate_fault(x509_credential(b"junk"), one.public))
    assert certificate_fault(Credential(CredentialType.BASIC, b""), one.public) is None


def test_a_damaged_certificate_never_raises() -> None:
    der = certificate(private_key(1), BOB)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)  # a negative serial, an odd encoding
        for at in range(len(der)):
            for flip in (0x01, 0x80, 0xFF):
                damaged = bytearray(der)
                damaged[at] ^= flip
                credential = x509_credential(bytes(damaged))
                user_of(credential)
                certificate_fault(credential, SignaturePublicKey(bytes(32)))
