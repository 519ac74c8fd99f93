"""KeyPackageIn.validate: each rule of RFC 9420 section 10.1 and of (semantics: key-packages) by name."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from mimids.mls.code_points import ComponentId, CredentialType, ExtensionType, LeafNodeSource
from mimids.mls.components import AppDataDictionary
from mimids.mls.faults import FaultError
from mimids.mls.framing import MLS_MESSAGE
from mimids.mls.key_package import KeyPackage, KeyPackageIn
from mimids.mls.leaf_node import Capabilities, Credential, Extension, HpkePublicKey, Lifetime, SignaturePublicKey
from mimids.mls.suites import SUITES
from mimids.wire.declare import decode, encode
from mimids.wire.ids import MLS10, CipherSuite, ProtocolVersion
from tests import vectors
from tests.support.mls_makers import DAY, NOW, YEAR, Signer, hpke_key, key_package, leaf_node, replace

TEN_YEARS = 11 * YEAR
RECORDED_AT = 1795408165 + DAY // 2  # within the lifetimes of the recordings


def refusal(package: KeyPackageIn, now_s: int = NOW, max_lifetime_s: int = YEAR) -> str:
    with pytest.raises(FaultError) as caught:
        package.validate(now_s, max_lifetime_s=max_lifetime_s)
    return str(caught.value)


@pytest.mark.parametrize("code", SUITES)
def test_a_valid_key_package_of_any_suite_is_accepted(code: int) -> None:
    package = key_package(Signer.of(code))
    made = decode(KeyPackageIn, package.encoded).validate(NOW, max_lifetime_s=YEAR)
    assert made.wire == package
    assert made.encoded == package.encoded
    assert made.ref == package.ref(SUITES[code])
    assert len(made.ref) == SUITES[code].hash_size
    assert made.not_after == NOW + YEAR - 2 * DAY
    assert not made.last_resort


def test_only_validate_makes_a_key_package() -> None:
    package = key_package(Signer.of(1))
    with pytest.raises(TypeError):
        KeyPackage(package, package.ref(SUITES[1]), False, object())


@pytest.mark.parametrize("code", SUITES)
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda it: replace(it, signature=it.signature[:-1] + bytes([it.signature[-1] ^ 1])), "KeyPackage's sig"),
        (lambda it: replace(it, signature=b""), "KeyPackage's sig"),
        (lambda it: replace(it, leaf_node=replace(it.leaf_node, signature=b"\0")), "leaf node's sig"),
        (
            lambda it: replace(it, leaf_node=replace(it.leaf_node, signature_key=b"")),
            "signature key does not fit",
        ),
    ],
)
def test_signatures_and_keys_that_are_wrong_are_refused(code: int, spoil: Any, reason: str) -> None:
    assert reason in refusal(spoil(key_package(Signer.of(code))))


@pytest.mark.parametrize("code", [2, 5, 7])
def test_a_point_of_a_nist_curve_is_a_signature_key_compressed_too(code: int) -> None:
    one = attrs.evolve(Signer.of(code), public=Signer.of(code).compressed)
    assert key_package(one).validate(NOW, max_lifetime_s=YEAR).wire.leaf_node.signature_key == one.public
    assert not SUITES[code].hpke_key_fits(one.public)  # RFC 9180 section 7.1.1; ts-mls conforms


@pytest.mark.parametrize("code", [2, 5, 7])
def test_a_point_that_is_not_on_the_curve_is_no_key(code: int) -> None:
    size = SUITES[code].signature_key_size
    for octets in (b"\x04" + bytes(size - 1), b"\x05" + bytes(size - 1), bytes(size), b"\x02" + b"\xff" * (size // 2)):
        assert not SUITES[code].signature_key_fits(SignaturePublicKey(octets))
        assert not SUITES[code].hpke_key_fits(octets)
    assert SUITES[code].hpke_key_fits(hpke_key(SUITES[code], 1))


def _refused_fields() -> list[Any]:
    one = Signer.of(1)
    extension = Extension(ExtensionType(0xF001), b"")
    update: dict[str, Any] = {"leaf_node_source": LeafNodeSource.UPDATE, "origin": None}
    cases = {
        "version is not mls10 (RFC 9420 section 10)": key_package(one, version=ProtocolVersion(2)),
        "suite is not supported (RFC 9420 section 17.1)": key_package(one, cipher_suite=CipherSuite(0x0A0A)),
        "leaf_node_source is not key_package (RFC 9420 section 10)": key_package(one, leaf_node(one, **update)),
        "init key does not fit": key_package(one, init_key=HpkePublicKey(bytes(31))),
        "encryption key does not fit": key_package(one, leaf_node(one, encryption_key=HpkePublicKey(bytes(33)))),
        "are the same (RFC 9420 section 10.1)": key_package(one, init_key=hpke_key(one.suite, 2)),
        "lack the leaf's own credential type": key_package(
            one, leaf_node(one, capabilities=Capabilities((MLS10,), (one.suite.code,), (), (), ()))
        ),
        "lack an extension of the leaf node": key_package(one, leaf_node(one, extensions=(extension,))),
        "twice in the KeyPackage (RFC 9420 section 13.4)": key_package(one, extensions=(extension, extension)),
        "twice in the leaf node (RFC 9420 section 13.4)": key_package(
            one, leaf_node(one, extensions=(extension, extension))
        ),
        "longer than allowed": key_package(one, leaf_node(one, origin=Lifetime(NOW - 1, NOW + YEAR))),
        "not begun": key_package(one, leaf_node(one, origin=Lifetime(NOW + 61, NOW + 62))),
        "has ended": key_package(one, leaf_node(one, origin=Lifetime(NOW - 2, NOW - 1))),
    }
    return [pytest.param(package, reason, id=reason) for reason, package in cases.items()]


@pytest.mark.parametrize(("package", "reason"), _refused_fields())
def test_each_rule_has_its_own_reason(package: KeyPackageIn, reason: str) -> None:
    assert reason in refusal(package)


def test_capabilities_may_lack_the_version_the_suite_and_extensions_of_the_key_package() -> None:
    """RFC 9420 section 10.1 lets no receiver check them; OpenMLS and mls-rs do not list their last resort's mark."""
    one = Signer.of(1)
    bare = Capabilities((), (), (), (), (CredentialType.BASIC,))
    last_resort = Extension(ExtensionType.LAST_RESORT_KEY_PACKAGE, b"")
    package = key_package(one, leaf_node(one, capabilities=bare), extensions=(last_resort,))
    assert package.validate(NOW, max_lifetime_s=YEAR).last_resort


def test_a_lifetime_may_begin_a_minute_ahead() -> None:
    one = Signer.of(1)
    key_package(one, leaf_node(one, origin=Lifetime(NOW + 60, NOW + 62))).validate(NOW, max_lifetime_s=YEAR)


def test_a_lifetime_includes_both_its_ends() -> None:
    one = Signer.of(1)
    package = key_package(one, leaf_node(one, origin=Lifetime(NOW, NOW)))
    package.validate(NOW, max_lifetime_s=0)


def test_an_x509_credential_needs_a_certificate_of_the_leafs_key() -> None:
    one = Signer.of(1)
    x509 = Capabilities((MLS10,), (one.suite.code,), (), (), (CredentialType.X509,))
    package = key_package(one, leaf_node(one, credential=Credential(CredentialType.X509, ()), capabilities=x509))
    assert "has no certificate" in refusal(package)


def test_unknown_extensions_are_accepted_in_a_leaf_that_lists_them_and_in_any_key_package() -> None:
    one = Signer.of(1)
    grease = 0x0A0A
    capabilities = Capabilities(
        (MLS10, ProtocolVersion(grease)),
        (CipherSuite(grease), one.suite.code),
        (ExtensionType(grease),),
        (),
        (CredentialType(grease), CredentialType.BASIC),
    )
    extensions = (Extension(ExtensionType(grease), b"any"),)
    unlisted = (Extension(ExtensionType(0xDADA), b"any"), Extension(ExtensionType.APPLICATION_ID, b"a default type"))
    package = key_package(one, leaf_node(one, capabilities=capabilities, extensions=extensions), extensions=unlisted)
    decode(KeyPackageIn, package.encoded).validate(NOW, max_lifetime_s=YEAR)


@pytest.mark.parametrize(
    "mark",
    [
        Extension(ExtensionType.LAST_RESORT_KEY_PACKAGE, b""),
        Extension(
            ExtensionType.APP_DATA_DICTIONARY,
            encode(AppDataDictionary(()).put(ComponentId.LAST_RESORT_KEY_PACKAGE, b"")),
        ),
    ],
)
def test_a_last_resort_is_marked_by_component_or_extension(mark: Extension) -> None:
    one = Signer.of(1)
    capabilities = Capabilities((MLS10,), (one.suite.code,), (mark.extension_type,), (), (CredentialType.BASIC,))
    package = key_package(one, leaf_node(one, capabilities=capabilities), extensions=(mark,))
    assert package.validate(NOW, max_lifetime_s=YEAR).last_resort


@pytest.mark.parametrize("name", ["public", "private", "policy"])
def test_recorded_key_packages_are_accepted(name: str) -> None:
    for line in vectors.load_lines(f"conversations/{name}.jsonl"):
        if line["kind"] == "key_package":
            package = MLS_MESSAGE.decode(bytes.fromhex(line["bytes"])).message
            assert isinstance(package, KeyPackageIn)
            made = package.validate(RECORDED_AT, max_lifetime_s=TEN_YEARS)
            assert made.ref.hex() == line["key_package_ref"]
            assert made.last_resort == line.get("last_resort", False)


def test_tampered_key_packages_are_judged_as_recorded() -> None:
    judged = {}
    for line in vectors.load_lines("conversations/public.jsonl"):
        if "(upload or claim)" in line.get("why", ""):
            package = MLS_MESSAGE.decode(bytes.fromhex(line["bytes"])).message
            assert isinstance(package, KeyPackageIn)
            try:
                package.validate(RECORDED_AT, max_lifetime_s=TEN_YEARS)
                judged[line["name"]] = line["expect"], "accepted"
            except FaultError as error:
                judged[line["name"]] = line["expect"], str(error)
    assert judged == {
        "expired_key_package": ("recommended_reject", "the lifetime has ended (RFC 9420 section 7.3)"),
        "not_yet_valid_key_package": ("recommended_reject", "the lifetime has not begun (RFC 9420 section 7.3)"),
        "key_package_bad_signature": ("reject", "the KeyPackage's signature is wrong (RFC 9420 section 10.1)"),
        "key_package_init_equals_encryption_key": (
            "reject",
            "the init key and the encryption key are the same (RFC 9420 section 10.1)",
        ),
        "key_package_lacks_required_capability": ("accept_upload", "accepted"),
        # The recording changed only the suite number from 1 to 2, so suite 2 (P-256) has X25519 and Ed25519 keys and is
        # not in the capabilities. Both signatures verify only under suites 1 and 3, so upload refuses the KeyPackage.
        "key_package_other_suite": ("accept_upload", "the init key does not fit the suite (RFC 9420 section 5.1.1)"),
    }


@pytest.mark.parametrize("code", [0x004E, 0x0050, 0x0051, 0x0907])
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda one, leaf: key_package(one, leaf, init_key=hpke_key(one.suite, 9)[:-1]), "init key does not fit"),
        (lambda one, leaf: key_package(one, leaf, init_key=hpke_key(one.suite, 9) + b"\0"), "init key does not fit"),
        (lambda one, _: key_package(one, leaf_node(one, encryption_key=bytes(32))), "encryption key does not fit"),
        (lambda one, _: key_package(one, leaf_node(one, signature_key=one.public[:-1])), "signature key does not fit"),
        (lambda one, _: replace(key_package(one), signature=bytes(4627)), "signature is wrong"),
    ],
)
def test_forged_and_shortened_post_quantum_keys_are_refused(code: int, spoil: Any, reason: str) -> None:
    one = Signer.of(code)
    assert key_package(one).validate(NOW, max_lifetime_s=YEAR).ref
    assert reason in refusal(spoil(one, leaf_node(one)))
