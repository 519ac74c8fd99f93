"""Code points of RFC 9420 section 17 and of draft-ietf-mls-extensions.

Registries are open: an unknown value also becomes a member of its enumeration, named `UNKNOWN_...`, and encodes to the
same number. So GREASE values (RFC 9420 section 13.5) are kept. The enumerations of the framing are closed: an unknown
value there raises `WireError`, because the layout of the rest would be unknown.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, Self, TypeVar

from mimids.wire.codec import UINT16, Codec, Mapped, Reader, Uint, WireError, vector

E = TypeVar("E", bound=IntEnum)


class OpenEnum(IntEnum):
    """A registry of 16-bit values, which later documents may extend.

    An unknown value is an int of this class that computes its name on demand, since a peer may send a million of them.
    """

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        return int.__new__(cls, value) if isinstance(value, int) and 0 <= value <= 0xFFFF else None

    def __getattr__(self, attribute: str) -> object:
        if attribute == "_name_":
            return f"UNKNOWN_0x{int(self):04x}"
        if attribute == "_value_":
            return int(self)
        raise AttributeError(attribute)


class ExtensionType(OpenEnum):
    """RFC 9420 section 17.3; the last members are of draft-ietf-mls-extensions."""

    APPLICATION_ID = 0x0001
    RATCHET_TREE = 0x0002
    REQUIRED_CAPABILITIES = 0x0003
    EXTERNAL_PUB = 0x0004
    EXTERNAL_SENDERS = 0x0005
    APP_DATA_DICTIONARY = 0x0006
    SUPPORTED_WIRE_FORMATS = 0x0007
    REQUIRED_WIRE_FORMATS = 0x0008
    LAST_RESORT_KEY_PACKAGE = 0x000A  # from earlier drafts; most clients still send it


class ProposalType(OpenEnum):
    """RFC 9420 section 17.4; the last members are of draft-ietf-mls-extensions."""

    ADD = 0x0001
    UPDATE = 0x0002
    REMOVE = 0x0003
    PSK = 0x0004
    REINIT = 0x0005
    EXTERNAL_INIT = 0x0006
    GROUP_CONTEXT_EXTENSIONS = 0x0007
    APP_DATA_UPDATE = 0x0008
    APP_EPHEMERAL = 0x0009
    SELF_REMOVE = 0x000A


class CredentialType(OpenEnum):
    """RFC 9420 section 17.5."""

    BASIC = 0x0001
    X509 = 0x0002


class ComponentId(OpenEnum):
    """draft-ietf-mls-extensions section 7.5, draft-ietf-mimi-protocol, draft-ietf-mimi-room-policy-03 section 10.1."""

    APP_COMPONENTS = 0x0001
    SAFE_AAD = 0x0002
    CONTENT_MEDIA_TYPES = 0x0003
    LAST_RESORT_KEY_PACKAGE = 0x0004
    APP_ACK = 0x0005
    PARTICIPANT_LIST = 0x0022
    ROLES_LIST = 0x0025


class WireFormat(IntEnum):
    """RFC 9420 section 17.2. Closed: the layout of other formats is unknown."""

    PUBLIC_MESSAGE = 0x0001
    PRIVATE_MESSAGE = 0x0002
    WELCOME = 0x0003
    GROUP_INFO = 0x0004
    KEY_PACKAGE = 0x0005


class ContentType(IntEnum):
    """RFC 9420 section 6."""

    APPLICATION = 1
    PROPOSAL = 2
    COMMIT = 3


class SenderType(IntEnum):
    """RFC 9420 section 6."""

    MEMBER = 1
    EXTERNAL = 2
    NEW_MEMBER_PROPOSAL = 3
    NEW_MEMBER_COMMIT = 4


class LeafNodeSource(IntEnum):
    """RFC 9420 section 7.2."""

    KEY_PACKAGE = 1
    UPDATE = 2
    COMMIT = 3


class NodeType(IntEnum):
    """RFC 9420 section 7.8."""

    LEAF = 1
    PARENT = 2


class ProposalOrRefType(IntEnum):
    """RFC 9420 section 12.4."""

    PROPOSAL = 1
    REFERENCE = 2


class PskType(IntEnum):
    """RFC 9420 section 8.4, and `application` of draft-ietf-mls-extensions section 4.5."""

    EXTERNAL = 1
    RESUMPTION = 2
    APPLICATION = 3


class ResumptionPskUsage(IntEnum):
    """RFC 9420 section 8.4."""

    APPLICATION = 1
    REINIT = 2
    BRANCH = 3


class AppDataUpdateOperation(IntEnum):
    """draft-ietf-mls-extensions section 4.7."""

    UPDATE = 1
    REMOVE = 2


class _Members(dict[int, E]):
    """Maps numbers to members of an enumeration, including unknown values of an open registry."""

    def __init__(self, cls: type[E]) -> None:
        super().__init__((int(member), member) for member in cls)
        self._cls = cls
        self._open = issubclass(cls, OpenEnum)

    def __missing__(self, value: int) -> E:
        if self._open:
            return int.__new__(self._cls, value)  # as OpenEnum._missing_ does, but faster
        raise WireError("unknown code point")


class CodePoint(Mapped[E]):
    """Codec for a member of `cls`, `size` octets long."""

    def __init__(self, cls: type[E], size: int) -> None:
        super().__init__(Uint(size), _Members(cls).__getitem__, None)
        self.cls = cls


class _CodePoints(Codec[tuple[E, ...]]):
    def __init__(self, cls: type[E]) -> None:
        self._cls = cls
        self._members = _Members(cls)

    def read(self, reader: Reader) -> tuple[E, ...]:
        return tuple(map(self._members.__getitem__, _VALUES.read(reader)))

    def write(self, value: tuple[E, ...], out: bytearray) -> None:
        _VALUES.write(value, out)


MOST_CODE_POINTS: Final = 1024  # in one list; `support` keeps each combination of a leaf's lists as sets
_VALUES: Final[Codec[tuple[int, ...]]] = vector(UINT16, most=MOST_CODE_POINTS)

EXTENSION_TYPE: Final[Codec[ExtensionType]] = CodePoint(ExtensionType, 2)
PROPOSAL_TYPE: Final[Codec[ProposalType]] = CodePoint(ProposalType, 2)
CREDENTIAL_TYPE: Final[Codec[CredentialType]] = CodePoint(CredentialType, 2)
COMPONENT_ID: Final[Codec[ComponentId]] = CodePoint(ComponentId, 2)
WIRE_FORMAT: Final[Codec[WireFormat]] = CodePoint(WireFormat, 2)
CONTENT_TYPE: Final[Codec[ContentType]] = CodePoint(ContentType, 1)
SENDER_TYPE: Final[Codec[SenderType]] = CodePoint(SenderType, 1)
LEAF_NODE_SOURCE: Final[Codec[LeafNodeSource]] = CodePoint(LeafNodeSource, 1)
NODE_TYPE: Final[Codec[NodeType]] = CodePoint(NodeType, 1)
PROPOSAL_OR_REF_TYPE: Final[Codec[ProposalOrRefType]] = CodePoint(ProposalOrRefType, 1)
PSK_TYPE: Final[Codec[PskType]] = CodePoint(PskType, 1)
RESUMPTION_PSK_USAGE: Final[Codec[ResumptionPskUsage]] = CodePoint(ResumptionPskUsage, 1)
EXTENSION_TYPES: Final[Codec[tuple[ExtensionType, ...]]] = _CodePoints(ExtensionType)
PROPOSAL_TYPES: Final[Codec[tuple[ProposalType, ...]]] = _CodePoints(ProposalType)
CREDENTIAL_TYPES: Final[Codec[tuple[CredentialType, ...]]] = _CodePoints(CredentialType)
APP_DATA_UPDATE_OPERATION: Final[Codec[AppDataUpdateOperation]] = CodePoint(AppDataUpdateOperation, 1)

# RFC 9420 section 7.2: "default" types are supported by all clients and not listed in capabilities.
DEFAULT_EXTENSIONS: Final = frozenset(ExtensionType(value) for value in range(0x0001, 0x0006))
DEFAULT_PROPOSALS: Final = frozenset(ProposalType(value) for value in range(0x0001, 0x0008))
