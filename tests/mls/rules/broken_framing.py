"""Messages that break a rule of framing."""

from __future__ import annotations

from mimids.mls.code_points import (
    ContentType,
    SenderType,
)
from mimids.mls.framing import Sender
from mimids.mls.opening import open_group
from mimids.mls.proposals import (
    Add,
    ReInit,
    Remove,
)
from mimids.mls.public_group import Valid
from mimids.mls.rules import verdict
from mimids.mls.rules.checks import check, check_without_state
from mimids.mls.rules.verdict import Invalid
from mimids.replay import replay
from mimids.wire.ids import MLS10, CipherSuite, GroupId
from tests.support.broken_rules import (
    JOINER,
    MEMBER,
    breaks,
    committed,
    private,
    proposed,
    raised,
    room,
    said,
    with_framed,
)
from tests.support.signing import Client, by_value


@breaks(verdict.MALFORMED)
def no_message() -> Invalid | None:
    return next(iter(replay.replay('{"bytes": "00"}', now_s=0))).verdict  # type: ignore[return-value]


@breaks(verdict.WRONG_GROUP)
def other_group() -> Invalid | None:
    return said(room(), private(group_id=GroupId(b"other")))


@breaks(verdict.WRONG_EPOCH)
def earlier_epoch() -> Invalid | None:
    here = room()
    return said(here.commit(0)[1], here.commit(1)[0])


@breaks(verdict.LAST_EPOCH)
def no_more_epochs() -> Invalid | None:
    here = room()
    here.epoch = (1 << 64) - 1
    return committed(here)


@breaks(verdict.REINITIALIZED)
def after_a_reinit() -> Invalid | None:
    here = room()
    message, after = here.commit(0, by_value(ReInit(GroupId(b"new"), MLS10, CipherSuite(1), ())), path=False)
    left = check(open_group(here.info()), message)
    assert isinstance(left, Valid)
    assert left.next is not None
    return said(left.next, after.commit(1)[0])


@breaks(verdict.APPLICATION_IN_CLEAR)
def application_in_clear() -> Invalid | None:
    here = room()
    return said(
        here, here.send(Sender(MEMBER, 1), here.clients[1].signer, b"hello", content_type=ContentType.APPLICATION)
    )


@breaks(verdict.SENDER_CONTENT)
def a_newcomer_proposes_as_a_committer() -> Invalid | None:
    return proposed(room(), Add(JOINER.key_package()), Sender(SenderType.NEW_MEMBER_COMMIT, None), by=JOINER.signer)


@breaks(verdict.BLANK_SENDER)
def nobody_there() -> Invalid | None:
    return proposed(room(), Remove(1), Sender(MEMBER, 6), by=JOINER.signer)


@breaks(verdict.UNLISTED_SENDER)
def not_an_external_sender() -> Invalid | None:
    return proposed(room(), Remove(1), Sender(SenderType.EXTERNAL, 0), by=JOINER.signer)


@breaks(verdict.SIGNATURE)
def signed_by_another() -> Invalid | None:
    return proposed(room(), Remove(1), Sender(MEMBER, 2), by=Client.of(4).signer)


@breaks(verdict.SIGNATURE)
def signed_in_a_sibling() -> Invalid | None:
    here = room()
    return said(here.commit(0)[1], here.commit(1)[1].commit(2)[0])


@breaks(verdict.SIGNATURE)
def newcomers_are_held_to_their_signature_in_any_state() -> Invalid | None:
    message = room().propose(
        Sender(SenderType.NEW_MEMBER_PROPOSAL, None), Add(JOINER.key_package()), by=Client.of(3).signer
    )
    return raised(lambda: check_without_state(message))


@breaks(verdict.CONFIRMATION_TAG_LENGTH)
def short_confirmation_tag() -> Invalid | None:
    return committed(room(), tag=bytes(31))


@breaks(verdict.MEMBERSHIP_TAG_LENGTH)
def empty_membership_tag() -> Invalid | None:
    here = room()
    return said(here, with_framed(here.commit(0)[0], membership_tag=b""))


@breaks(verdict.SENDER_DATA_LENGTH)
def empty_sender_data() -> Invalid | None:
    return said(room(), private(encrypted_sender_data=b""))


@breaks(verdict.SENDER_DATA_LENGTH)
def empty_sender_data_in_an_unknown_state() -> Invalid | None:
    return raised(lambda: check_without_state(private(encrypted_sender_data=b"")))


@breaks(verdict.CIPHERTEXT_LENGTH)
def only_a_tag() -> Invalid | None:
    return said(room(), private(ciphertext=bytes(16)))
