"""What the cases in tests/mls/rules share: a registry of cases by rule, a room, and verdicts on what it sends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mimids.mls.code_points import (
    ComponentId,
    ContentType,
    ExtensionType,
    ProposalType,
    PskType,
    SenderType,
    WireFormat,
)
from mimids.mls.components import AppDataDictionary, ComponentData
from mimids.mls.framing import MLSMessage, PrivateMessage, Sender
from mimids.mls.group_info import GroupInfo, RequiredCapabilities
from mimids.mls.leaf_node import (
    Extension,
)
from mimids.mls.opening import open_group
from mimids.mls.proposals import (
    ExternalInit,
    PreSharedKeyId,
    SelfRemove,
)
from mimids.mls.public_group import PublicGroup
from mimids.mls.rules import verdict
from mimids.mls.rules.checks import check
from mimids.mls.rules.verdict import Invalid, RuleError
from mimids.wire.declare import encode
from mimids.wire.ids import MLS10, GroupId
from tests.support.mls_makers import replace
from tests.support.signing import Client, Room, by_value, crowd

Case = Callable[[], Invalid | None]
CASES: list[tuple[str, Case]] = []
SELF = SelfRemove()
INIT = by_value(ExternalInit(bytes(32)))
PSK = PreSharedKeyId(PskType.EXTERNAL, b"psk", bytes(32))
JOINER = Client.of(60, "zoe@z.example")
DICTIONARY = Extension(
    ExtensionType.APP_DATA_DICTIONARY,
    encode(AppDataDictionary((ComponentData(ComponentId(0xFF00), b"data"),))),
)
MEMBER = SenderType.MEMBER


def breaks(rule: verdict.Rule) -> Callable[[Case], Case]:
    def note(case: Case) -> Case:
        CASES.append((rule.name, case))
        return case

    return note


def room(size: int = 5, *extensions: Extension) -> Room:
    return crowd(size, extensions=extensions)


def said(where: Room | PublicGroup, message: MLSMessage) -> Invalid | None:
    group = open_group(where.info()) if isinstance(where, Room) else where
    found = check(group, message)
    return found if isinstance(found, Invalid) else None


def committed(where: Room, *items: Any, by: int | Client = 0, **how: Any) -> Invalid | None:
    return said(where, where.commit(by, *items, **how)[0])


def proposed(where: Room, body: Any, sender: Sender | int = 1, **how: Any) -> Invalid | None:
    return said(where, where.propose(sender, body, **how))


def opened(info: GroupInfo, tree: bytes | None = None) -> Invalid | None:
    return raised(lambda: open_group(info, tree))


def raised(call: Callable[[], object]) -> Invalid | None:
    try:
        call()
    except RuleError as error:
        return error.invalid
    return None


def with_framed(message: MLSMessage, **changed: Any) -> MLSMessage:
    return replace(message, message=replace(message.message, **changed))


def required(*, extensions: tuple[int, ...] = (), proposals: tuple[int, ...] = ()) -> Extension:
    capabilities = RequiredCapabilities(tuple(map(ExtensionType, extensions)), tuple(map(ProposalType, proposals)), ())
    return Extension(ExtensionType.REQUIRED_CAPABILITIES, encode(capabilities))


def private(**changed: Any) -> MLSMessage:
    message = PrivateMessage(GroupId(b"mimi://a.example/g/room"), 1, ContentType.APPLICATION, b"", bytes(28), bytes(40))
    return MLSMessage(MLS10, WireFormat.PRIVATE_MESSAGE, replace(message, **changed))
