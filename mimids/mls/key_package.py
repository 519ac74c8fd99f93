"""KeyPackages (RFC 9420 section 10): `KeyPackageIn` is parsed but not validated, `KeyPackage` is validated."""

from __future__ import annotations

from typing import Final

import attrs

from mimids.mls.code_points import DEFAULT_EXTENSIONS, ComponentId, ExtensionType, LeafNodeSource
from mimids.mls.components import dictionary_of
from mimids.mls.faults import Fault, FaultError
from mimids.mls.identity import certificate_fault
from mimids.mls.leaf_node import (
    EXTENSIONS,
    HPKE_PUBLIC_KEY,
    Extension,
    HpkePublicKey,
    LeafNode,
    extension_data,
    repeated,
    signed_part,
)
from mimids.mls.suites import Suite, key_package_ref, suite_of, verify_with_label
from mimids.wire.codec import OPAQUE_V
from mimids.wire.declare import Kept, codec, struct, wire
from mimids.wire.ids import CIPHER_SUITE, MLS10, PROTOCOL_VERSION, CipherSuite, KeyPackageRef, ProtocolVersion

CLOCK_SKEW_S: Final = 60  # how far ahead not_before may be: the clock that set it may be ahead of ours
_MAKER: Final = object()  # proves that KeyPackageIn.validate made the object


@struct
class KeyPackageIn(Kept):
    """A KeyPackage that was parsed but not validated (RFC 9420 section 10)."""

    version: ProtocolVersion = wire(PROTOCOL_VERSION)
    cipher_suite: CipherSuite = wire(CIPHER_SUITE)
    init_key: HpkePublicKey = wire(HPKE_PUBLIC_KEY)
    leaf_node: LeafNode = wire(codec(LeafNode))
    extensions: tuple[Extension, ...] = wire(EXTENSIONS)
    signature: bytes = wire(OPAQUE_V)

    def tbs(self) -> bytes:
        """Return KeyPackageTBS."""
        return signed_part(self.encoded, self.signature)

    def ref(self, suite: Suite) -> KeyPackageRef:
        """Return the KeyPackageRef (RFC 9420 section 5.2)."""
        return key_package_ref(suite, self.encoded)

    def fault(self) -> Fault | None:
        """Return the first rule that the KeyPackage breaks regardless of time and group, None if it is valid."""
        leaf = self.leaf_node
        if self.version != MLS10:
            return Fault("the protocol version is not mls10", "RFC 9420 section 10")
        suite = suite_of(self.cipher_suite)
        if suite is None:
            return Fault("the cipher suite is not supported", "RFC 9420 section 17.1")
        if leaf.leaf_node_source is not LeafNodeSource.KEY_PACKAGE:
            return Fault("the leaf_node_source is not key_package", "RFC 9420 section 10")
        if not suite.hpke_key_fits(self.init_key):
            return Fault("the init key does not fit the suite", "RFC 9420 section 5.1.1")
        if self.init_key == leaf.encryption_key:
            return Fault("the init key and the encryption key are the same", "RFC 9420 section 10.1")
        if repeated(self.extensions):
            return Fault("an extension type occurs twice in the KeyPackage", "RFC 9420 section 13.4")
        # The capabilities may lack the version, the suite and the KeyPackage's own extensions: section 10 wants them
        # listed, but section 10.1 lets no receiver check this. OpenMLS and mls-rs mark a last resort with an extension
        # that they do not list.
        fault = leaf_fault(leaf, suite)
        if fault is not None:
            return fault
        if not leaf.verifies(suite):
            return Fault("the leaf node's signature is wrong", "RFC 9420 section 7.3")
        if not verify_with_label(suite, leaf.signature_key, b"KeyPackageTBS", self.tbs(), self.signature):
            return Fault("the KeyPackage's signature is wrong", "RFC 9420 section 10.1")
        return None

    def lifetime_fault(self, now_s: int, max_lifetime_s: int) -> Fault | None:
        """Return the fault of the lifetime at `now_s` (seconds since 1970); call this only at upload and at claim."""
        lifetime = self.leaf_node.lifetime
        if lifetime is None:
            return Fault("the leaf_node_source is not key_package", "RFC 9420 section 10")
        if lifetime.not_after - lifetime.not_before > max_lifetime_s:
            return Fault("the lifetime is longer than allowed here", "RFC 9420 section 7.2")
        if now_s + CLOCK_SKEW_S < lifetime.not_before:
            return Fault("the lifetime has not begun", "RFC 9420 section 7.3")
        if now_s > lifetime.not_after:
            return Fault("the lifetime has ended", "RFC 9420 section 7.3")
        return None

    def validate(self, now_s: int, *, max_lifetime_s: int) -> KeyPackage:
        """Return the validated KeyPackage at `now_s` (seconds since 1970); raise `FaultError` if it is invalid."""
        fault = self.lifetime_fault(now_s, max_lifetime_s) or self.fault()
        if fault is not None:
            raise FaultError(fault)
        suite = suite_of(self.cipher_suite)
        assert suite is not None  # noqa: S101 - fault() checked it
        return KeyPackage(self, self.ref(suite), _is_last_resort(self), _MAKER)


@attrs.frozen
class KeyPackage:
    """A validated KeyPackage; only `KeyPackageIn.validate` can create one."""

    wire: KeyPackageIn
    ref: KeyPackageRef
    last_resort: bool
    _maker: object = attrs.field(repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if self._maker is not _MAKER:
            raise TypeError("only KeyPackageIn.validate makes a KeyPackage")

    @property
    def encoded(self) -> bytes:
        """Return the octets as they arrived."""
        return self.wire.encoded

    @property
    def not_after(self) -> int:
        """Return the time, in seconds since 1970, after which the KeyPackage may not be handed out."""
        lifetime = self.wire.leaf_node.lifetime
        assert lifetime is not None  # noqa: S101 - validate checked it
        return lifetime.not_after


def leaf_fault(leaf: LeafNode, suite: Suite) -> Fault | None:
    """Return the fault of a leaf, apart from its signature (RFC 9420 sections 5.3, 7.2), None if it is valid."""
    if not suite.hpke_key_fits(leaf.encryption_key):
        return Fault("the encryption key does not fit the suite", "RFC 9420 section 5.1.1")
    if not suite.signature_key_fits(leaf.signature_key):
        return Fault("the signature key does not fit the suite", "RFC 9420 section 5.1.1")
    if leaf.credential.credential_type not in leaf.capabilities.credentials:
        return Fault("the capabilities lack the leaf's own credential type", "RFC 9420 section 7.2")
    if repeated(leaf.extensions):
        return Fault("an extension type occurs twice in the leaf node", "RFC 9420 section 13.4")
    if not _extensions_covered(leaf.extensions, leaf):
        return Fault("the capabilities lack an extension of the leaf node", "RFC 9420 section 7.3")
    return certificate_fault(leaf.credential, leaf.signature_key)


def _extensions_covered(extensions: tuple[Extension, ...], leaf: LeafNode) -> bool:
    listed = leaf.capabilities.extensions
    return all(each.extension_type in listed or each.extension_type in DEFAULT_EXTENSIONS for each in extensions)


def _is_last_resort(package: KeyPackageIn) -> bool:
    """Look for the component of a last resort (draft-ietf-mls-extensions section 5.4), or for its earlier extension."""
    if extension_data(package.extensions, ExtensionType.LAST_RESORT_KEY_PACKAGE) is not None:
        return True
    try:
        dictionary = dictionary_of(package.extensions)
    except FaultError:
        return False
    return dictionary is not None and dictionary.get(ComponentId.LAST_RESORT_KEY_PACKAGE) is not None
