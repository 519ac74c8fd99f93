"""Commands on policy: bans, mutes and the rate limits."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import attrs

from mimids.config import Limits
from mimids.ds.commands.declare import Argument, ArgumentKind, Command, Context, Effect, JsonObject
from mimids.ds.commands.recorded import Named
from mimids.ds.devices import accounts
from mimids.errors import Malformed, NotFound
from mimids.store import bans
from mimids.store.bans import EVERY_GROUP, Ban, Mute
from mimids.store.engine.transaction import Tx
from mimids.values import Milliseconds
from mimids.wire.base64url import base64url, from_base64url
from mimids.wire.ids import GroupId, ProviderId, UserId, provider_id, spelling_fault

REASON_CHARS: Final = 500

_RATES: Final = tuple(
    field.name for field in attrs.fields(Limits) if "_per_" in field.name or field.name.endswith("_burst")
)


def _add_ban(tx: Tx, context: Context, *, subject: str, reason: str = "", expires_at: int | None = None) -> JsonObject:
    subject_id = _subject(tx, context, subject)
    if subject_id == context.config.provider:
        raise Malformed("a provider cannot ban itself")
    bans.put_ban(tx, Ban(subject_id, _reason(reason), context.now, _end(context, expires_at)))
    return {"subject": _text(subject_id)}


def _list_bans(tx: Tx, context: Context) -> JsonObject:
    return {
        "bans": [
            {
                "subject": _text(each.subject),
                "reason": each.reason,
                "created_at": each.created_at,
                "expires_at": each.expires_at,
            }
            for each in bans.every_ban(tx)
            if each.expires_at is None or each.expires_at > context.now
        ]
    }


def _remove_ban(tx: Tx, context: Context, *, subject: str) -> JsonObject:
    subject_id = _subject(tx, context, subject)
    if not bans.remove_ban(tx, subject_id):
        raise NotFound("this user or provider is not banned")
    return {"subject": _text(subject_id)}


def _mute(
    tx: Tx,
    context: Context,
    *,
    user: str,
    group: str | None = None,
    reason: str = "",
    expires_at: int | None = None,
) -> JsonObject:
    subject_id = _user(tx, context, user)
    bans.put_mute(tx, Mute(subject_id, _group(group), _reason(reason), context.now, _end(context, expires_at)))
    return {"user_id": _text(subject_id)}


def _unmute(tx: Tx, context: Context, *, user: str, group: str | None = None) -> JsonObject:
    subject_id = _user(tx, context, user)
    if not bans.remove_mute(tx, subject_id, _group(group)):
        where = "in all groups" if group is None else "in this group"
        raise NotFound(f"this user is not muted {where}")
    return {"user_id": _text(subject_id)}


def _list_limits(tx: Tx, context: Context) -> JsonObject:
    limits = context.config.limits
    return {
        "rates": [{"limit": name, "value": getattr(limits, name) or None} for name in _RATES],
        "mutes": [
            {
                "user_id": _text(each.user_id),
                "group_id": base64url(each.group_id) if each.group_id else None,
                "reason": each.reason,
                "created_at": each.created_at,
                "expires_at": each.expires_at,
            }
            for each in bans.every_mute(tx)
            if each.expires_at is None or each.expires_at > context.now
        ],
    }


def _subject(tx: Tx, context: Context, written: str) -> UserId | ProviderId:
    """Return the subject of a ban, which may be a user id, a domain, or the local name of one of our users."""
    if not written.lower().startswith("mimi:") and "." in written:
        try:
            return provider_id(written)
        except ValueError:
            raise Malformed("expected a domain in lower case, or a user id such as mimi://b.example/u/bob") from None
    return _user(tx, context, written)


def _user(tx: Tx, context: Context, written: str) -> UserId:
    if written.lower().startswith("mimi:"):
        misspelt = spelling_fault(written.encode())
        if misspelt is not None:
            raise Malformed(misspelt)
        return UserId(written.encode())
    return accounts.find_user(tx, context.config.provider, written)[1]


def _group(written: str | None) -> GroupId:
    if written is None:
        return EVERY_GROUP
    if "://" not in written:
        with suppress(ValueError):
            return GroupId(from_base64url(written))
    return GroupId(written.encode())


def _reason(written: str) -> str:
    if len(written) > REASON_CHARS:
        raise Malformed(f"reason: at most {REASON_CHARS} characters are allowed")
    return written


def _end(context: Context, expires_at: int | None) -> Milliseconds | None:
    if expires_at is not None and expires_at <= context.now:
        raise Malformed("expires_at: expected a time in the future")
    return None if expires_at is None else Milliseconds(expires_at)


def _text(subject: UserId | ProviderId) -> str:
    return subject.decode("utf-8", "replace") if isinstance(subject, bytes) else subject


_SUBJECT: Final = Argument(
    "subject", "a user id, a local user's name, or a provider's domain", "mimi://b.example/u/bob", named=Named.SUBJECT
)
_USER: Final = Argument("user", "a user id, or a local user's name", "mimi://b.example/u/bob", named=Named.USER)
_WHERE: Final = Argument(
    "group",
    "the group id, as text or in base64url; without it, all groups",
    "mimi://a.example/g/1",
    required=False,
    flag="--group",
)
_WHY: Final = Argument("reason", "a note for other operators", "spam", required=False, flag="--reason", secret=True)
_UNTIL: Final = Argument(
    "expires_at",
    "when it ends: 30d, 12h, or a date",
    1924992000000,
    ArgumentKind.TIME,
    required=False,
    flag="--expires",
)
_TIMES: Final = '"reason": "spam", "created_at": 1764000000000, "expires_at": null'

POLICY: Final = (
    Command(
        name="ban add",
        summary="Ban a user from all groups hosted here, or a provider from all exchange with this one.",
        arguments=(_SUBJECT, _WHY, _UNTIL),
        work=_add_ban,
        answer='{"subject": "mimi://b.example/u/bob"}',
        example="mimids ban add mimi://b.example/u/bob --reason spam --expires 30d",
        effects=(Effect.POLICY,),
        hints={NotFound: "give users of other providers as mimi://b.example/u/bob"},
    ),
    Command(
        name="ban list",
        summary="List the banned users and providers.",
        work=_list_bans,
        answer=f'{{"bans": [{{"subject": "mimi://b.example/u/bob", {_TIMES}}}]}}',
        example="mimids ban list",
        writes=False,
    ),
    Command(
        name="ban remove",
        summary="Remove a ban.",
        arguments=(_SUBJECT,),
        work=_remove_ban,
        answer='{"subject": "mimi://b.example/u/bob"}',
        example="mimids ban remove mimi://b.example/u/bob",
        effects=(Effect.POLICY,),
        hints={NotFound: "run `mimids ban list` to see the bans"},
    ),
    Command(
        name="limit list",
        summary="List the rate limits and the muted users.",
        work=_list_limits,
        answer='{"rates": [{"limit": "device_sends_per_second", "value": 100}], "mutes":'
        f' [{{"user_id": "mimi://b.example/u/bob", "group_id": null, {_TIMES}}}]}}',
        example="mimids limit list",
        writes=False,
    ),
    Command(
        name="limit mute",
        summary="Block a user's application messages to groups hosted here.",
        arguments=(_USER, _WHERE, _WHY, _UNTIL),
        work=_mute,
        answer='{"user_id": "mimi://b.example/u/bob"}',
        example="mimids limit mute mimi://b.example/u/bob --group mimi://a.example/g/1 --expires 12h",
        effects=(Effect.POLICY,),
        hints={NotFound: "give users of other providers as mimi://b.example/u/bob"},
    ),
    Command(
        name="limit unmute",
        summary="Unmute a user.",
        arguments=(_USER, _WHERE),
        work=_unmute,
        answer='{"user_id": "mimi://b.example/u/bob"}',
        example="mimids limit unmute mimi://b.example/u/bob --group mimi://a.example/g/1",
        effects=(Effect.POLICY,),
        hints={NotFound: "run `mimids limit list` to see the muted users and their groups"},
    ),
)
