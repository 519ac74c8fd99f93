"""The JSON bodies of the endpoints for devices (http: json-bodies)."""

from __future__ import annotations

from typing import Any, Final, Literal, NotRequired, TypedDict

from mimids.ds.key_packages import tokens
from mimids.http.api import device_handlers as handlers
from mimids.http.api.bodies import json_answer, json_object
from mimids.http.api.public import EXTERNAL_SENDER, EXTERNAL_SENDER_EXAMPLE
from mimids.web_push.subscription import Subscription, make_subscription
from mimids.wire.base64url import from_base64url

_STOCK: Final = '[{"version", "cipher_suite", "left", "last_resort"}]'
_STOCK_EXAMPLE: Final = '[{"version":1,"cipher_suite":1,"left":98,"last_resort":true}]'

ME: Final = json_answer(
    handlers.Me,
    '{"user_id", "device_id", "provider", "ohttp_identity": base64url, "limits": {NAME: number},'
    f' "stock": {_STOCK}, "external_senders": [{EXTERNAL_SENDER}],'
    ' "push_public_key": base64url or null}',
    '{"user_id":"mimi://b.example/u/bob","device_id":"phone","provider":"b.example",'
    '"ohttp_identity":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",'
    f'"limits":{{"key_package_bytes":65536}},"stock":{_STOCK_EXAMPLE},'
    f'"external_senders":[{EXTERNAL_SENDER_EXAMPLE}],'
    '"push_public_key":"BNcRdreALRFXTkOOUHK1EtK2wtaz5Ry4YfYCA_0QTpQtUbVlUls0VJXg7A8u-Ts1XbjhazAkj7I99e8QcYP7DkM"}',
)
UPLOAD: Final = json_answer(
    handlers.Upload,
    f'{{"accepted": n, "refused": [{{"index", "reason"}}], "stock": {_STOCK}}}',
    f'{{"accepted":99,"refused":[{{"index":3,"reason":"uploaded before"}}],"stock":{_STOCK_EXAMPLE}}}',
)
CONTACT_TOKEN: Final = json_answer(
    handlers.ContactToken,
    '{"id", "bearer_token": base64url}',
    '{"id":7,"bearer_token":"vIufUZ9H-Zrbh5RzXwPbqeiiZUHpZQV2hBn-OzlJHd0"}',
)


class TokenTermsMembers(TypedDict):
    """The JSON members of the terms of a contact token; null means the same as a missing member."""

    scheme: Literal["shared", "unique"]
    label: NotRequired[str | None]
    expires_at: NotRequired[int | None]
    uses: NotRequired[int | None]
    rate_claims: NotRequired[int | None]
    rate_seconds: NotRequired[int | None]


def _token_terms(members: dict[str, Any]) -> tokens.TokenTerms:
    """Read the terms of a contact token; unknown members are ignored."""
    scheme, label = members["scheme"], members.get("label") or ""
    numbers = {name: members.get(name) for name in ("expires_at", "uses", "rate_claims", "rate_seconds")}
    if not isinstance(scheme, str) or not isinstance(label, str):
        raise TypeError
    if any(type(each) not in (int, type(None)) for each in numbers.values()):
        raise TypeError
    return tokens.TokenTerms(scheme, label, **numbers)


class SubscriptionMembers(TypedDict):
    """The JSON members of a push subscription: the endpoint and the keys of the browser's PushSubscription."""

    endpoint: str
    p256dh: str
    auth: str


def _subscription(members: dict[str, Any]) -> Subscription:
    """Read a push subscription; unknown members are ignored."""
    if not all(isinstance(members[name], str) for name in ("endpoint", "p256dh", "auth")):
        raise TypeError
    p256dh, auth = (from_base64url(members[name]) for name in ("p256dh", "auth"))
    return make_subscription(members["endpoint"], p256dh, auth)


SUBSCRIPTION: Final = json_object(
    _subscription,
    '{"endpoint": https URL, "p256dh": base64url, "auth": base64url}, as the browser\'s PushSubscription has them',
    '{"endpoint":"https://push.example/JzLQ3raZJfFBR0aqvOMsLrt54w4rJUsV",'
    '"p256dh":"BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4",'
    '"auth":"BTBZMqHH6r4Tts7J_aSIgg"}',
    SubscriptionMembers,
)
TOKEN_TERMS: Final = json_object(
    _token_terms,
    '{"scheme": "shared" or "unique", "label", "expires_at": ms since the epoch, "uses", "rate_claims",'
    ' "rate_seconds"}; scheme is required; a rate allows "rate_claims" KeyPackages in each "rate_seconds"',
    '{"scheme":"unique","label":"Carol","expires_at":1924992000000,"uses":10,"rate_claims":2,"rate_seconds":3600}',
    TokenTermsMembers,
)
