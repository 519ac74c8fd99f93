"""The endpoints for anybody: the directory, and the OHTTP gateway with its keys (http: public)."""

from __future__ import annotations

from typing import Final, TypedDict

import attrs

from mimids.config import Limits
from mimids.ds.departures.provider_keys import PublishedKey
from mimids.ds.key_packages.gateway_keys import KeysAnswer, identity_public
from mimids.ds.services import Services
from mimids.errors import Busy, OhttpKey, OhttpUndecipherable, RateLimited, StorageUnavailable
from mimids.http.api.bodies import NO_BODY, json_answer, octets
from mimids.http.api.endpoints import Answer, AnyEndpoint, Call, Endpoint, Listener
from mimids.http.api.providers import PROVIDERS
from mimids.http.media_types import OHTTP_KEYS, OHTTP_REQUEST, OHTTP_RESPONSE
from mimids.mls.suites import SUITES
from mimids.ohttp.keys_signature import HEADER as KEYS_SIGNATURE
from mimids.values import Anyone
from mimids.wire.base64url import base64url

DIRECTORY_MAX_AGE_SECONDS: Final = 300
EXTERNAL_SENDER: Final = (
    '{"scheme", "cipher_suites": [..], "signature_key", "credential", "external_sender"}'  # also in `me`
)
EXTERNAL_SENDER_EXAMPLE: Final = (
    '{"scheme":"Ed25519","cipher_suites":[1,3],"signature_key":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",'
    '"credential":"bWltaTovL2EuZXhhbXBsZQ",'
    '"external_sender":"INdamAGCsQq31Uv-08lkBzoO4XLz2qYjJa8CGmj3B1EaAAEQbWltaTovL2EuZXhhbXBsZQ"}'
)
_PUBLISHED: Final = ("send_batch_messages", "receive_wait_seconds")  # and all limits that end in _bytes


class Directory(TypedDict):
    """What a provider publishes about itself (http: json-bodies)."""

    provider: str
    version: str
    endpoints: dict[str, str]
    ohttp_identity: str
    cipher_suites: list[int]
    external_senders: list[PublishedKey]
    limits: dict[str, int]


async def written_identity(services: Services) -> str:
    """Return the provider's ohttp_identity in base64url, as contact cards have it."""
    identity = await services.store.read(identity_public)
    if identity is None:
        raise Busy("the server is still starting")
    return base64url(identity)


async def directory(services: Services, call: Call[Anyone, None]) -> Answer[Directory]:
    """Return the URLs of all endpoints, and the limits of requests."""
    config = services.config
    rows: tuple[AnyEndpoint, ...] = (*PUBLIC, *PROVIDERS)
    body: Directory = {
        "provider": config.provider,
        "version": installed_version(),
        "endpoints": {row.name: config.listen.public_url + row.path for row in rows},
        "ohttp_identity": await written_identity(services),
        "cipher_suites": sorted(SUITES),
        "external_senders": await services.provider_keys.published(),
        "limits": published_limits(config.limits) | {"bundle_max_requests": config.ohttp.bundle_max_requests},
    }
    return Answer(body, headers={"Cache-Control": f"max-age={DIRECTORY_MAX_AGE_SECONDS}"})


async def ohttp_keys(services: Services, call: Call[Anyone, None]) -> Answer[bytes]:
    """Return the gateway's key configurations with their signature."""
    return keys_answer(services.ohttp_keys.served())


async def ohttp_gateway(services: Services, call: Call[Anyone, bytes]) -> Answer[bytes]:
    """Answer a sealed request. Errors that occur after the request was opened are sealed as well."""
    answer = await services.gateway.answer(call.body, call.address or None, reserve=call.reserve)
    return Answer(answer, headers={"Cache-Control": "no-store"})


def published_limits(limits: Limits, *prefixes: str) -> dict[str, int]:
    """Return the limits that clients must know, and the limits whose names begin with one of `prefixes`."""
    return {
        field.name: getattr(limits, field.name)
        for field in attrs.fields(Limits)
        if field.name.endswith("_bytes") or field.name.startswith(prefixes) or field.name in _PUBLISHED
    }


def keys_answer(keys: KeysAnswer) -> Answer[bytes]:
    """Return key configurations with their signature; caches may keep them for `max_age` seconds."""
    cache = f"max-age={keys.max_age}" if keys.max_age else "no-store"
    headers = {"Cache-Control": cache} | ({KEYS_SIGNATURE: keys.signature} if keys.signature else {})
    return Answer(keys.body, headers=headers)


def installed_version() -> str:
    """Return the version of the package."""
    # imported here: it needs 20 more modules, and an idle server does not call this
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("mimids")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0"


# Not annotated, so that mypy checks each handler against its row (see `endpoints.AnyEndpoint`).
_ROWS = (
    Endpoint(
        name="directory",
        listener=Listener.PUBLIC,
        method="GET",
        path="/.well-known/mimi-ds",
        caller=Anyone,
        request=NO_BODY,
        answer=json_answer(
            Directory,
            '{"provider", "version", "endpoints": {NAME: URL}, "ohttp_identity", "cipher_suites": [..], '
            f'"external_senders": [{EXTERNAL_SENDER}], "limits": {{NAME: number}}}}',
            '{"provider":"a.example","version":"0.1.0","endpoints":{"send":"https://a.example/ds/v1/send"},'
            '"ohttp_identity":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","cipher_suites":[1,2,3],'
            f'"external_senders":[{EXTERNAL_SENDER_EXAMPLE}],'
            '"limits":{"max_body_bytes":16777216}}',
        ),
        handler=directory,
        summary="the URLs of all endpoints, and the limits of requests",
        problems=(Busy,),
    ),
    Endpoint(
        name="ohttp-keys",
        listener=Listener.PUBLIC,
        method="GET",
        path="/.well-known/ohttp-gateway",
        caller=Anyone,
        request=NO_BODY,
        answer=octets(OHTTP_KEYS),
        handler=ohttp_keys,
        summary="the gateway's key configurations, with their signature in `Mimids-Keys-Signature`",
        problems=(Busy,),
        unlinkable=True,
    ),
    Endpoint(
        name="ohttp-gateway",
        listener=Listener.PUBLIC,
        method="POST",
        path="/.well-known/ohttp-gateway",
        caller=Anyone,
        request=octets(OHTTP_REQUEST),
        answer=octets(OHTTP_RESPONSE),
        handler=ohttp_gateway,
        summary="a sealed request for KeyPackages; errors after the request was opened are sealed as well",
        limit="ohttp_bytes",
        problems=(OhttpKey, OhttpUndecipherable, RateLimited, StorageUnavailable),
        unlinkable=True,
    ),
)
PUBLIC: Final[tuple[AnyEndpoint, ...]] = _ROWS
