"""Welcomes (RFC 9420 section 12.4.3.1): the recipients are visible, the rest is encrypted."""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from mimids.mls.proposals import HpkeCiphertext, PreSharedKeyId
from mimids.wire.codec import OPAQUE_V, Codec, optional, vector
from mimids.wire.declare import codec, struct, wire
from mimids.wire.ids import CIPHER_SUITE, CipherSuite, KeyPackageRef

_MOST_JOINERS: Final = 4096  # a megabyte of empty secrets takes a second, and 42 MB

# This may have any length; the caller checks that the length fits the suite.
_NEW_MEMBER: Codec[KeyPackageRef] = OPAQUE_V.of(KeyPackageRef)


@struct
class PathSecret:
    """The secret of the lowest node above both the committer and the new member."""

    path_secret: bytes = wire(OPAQUE_V)


@struct
class GroupSecrets:
    """The plaintext of `EncryptedGroupSecrets`; a server cannot decrypt it."""

    joiner_secret: bytes = wire(OPAQUE_V)
    path_secret: PathSecret | None = wire(optional(codec(PathSecret)))
    psks: tuple[PreSharedKeyId, ...] = wire(vector(codec(PreSharedKeyId)))


@struct
class EncryptedGroupSecrets:
    """The group's secrets, encrypted to one KeyPackage."""

    new_member: KeyPackageRef = wire(_NEW_MEMBER)
    encrypted_group_secrets: HpkeCiphertext = wire(codec(HpkeCiphertext))


@struct
class Welcome:
    """One Welcome for any number of new members."""

    cipher_suite: CipherSuite = wire(CIPHER_SUITE)
    secrets: tuple[EncryptedGroupSecrets, ...] = wire(vector(codec(EncryptedGroupSecrets), most=_MOST_JOINERS))
    encrypted_group_info: bytes = wire(OPAQUE_V)

    @property
    def key_package_refs(self) -> tuple[KeyPackageRef, ...]:
        """Return the references of the recipients' KeyPackages, in the Welcome's order."""
        return tuple(each.new_member for each in self.secrets)

    def only_for(self, refs: Container[KeyPackageRef]) -> Welcome:
        """Return this Welcome with only the secrets for these KeyPackages; their recipients can still join.

        This works because the secrets are bound to the encrypted GroupInfo, but not to each other (RFC 9420 section
        12.4.3.1).
        """
        secrets = tuple(each for each in self.secrets if each.new_member in refs)
        return Welcome(self.cipher_suite, secrets, self.encrypted_group_info)
