"""Endpoints for anybody: the directory, and the OHTTP gateway with its keys (http: public)."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import attrs

from mimids.config import Limits
from mimids.ds.key_packages.gateway_keys import KeysAnswer, identity_public
from mimids.ds.services import Services
from mimids.errors import Busy, OhttpKey, OhttpUndecipherable, RateLimited, StorageUnavailable
from mimids.http.api.endpoints import (
    Access,
    Answer,
    Call,
    Endpoint,
    Listener,
    json_answer,
    octets,
)
from mimids.http.api.providers import PROVIDERS
from mimids.http.media_types import OHTTP_KEYS, OHTTP_REQUEST, OHTTP_RESPONSE
from mimids.mls.suites import SUITES
from mimids.ohttp.keys_signature import HEADER as KEYS_SIGNATURE
from mimids.wire.base64url import base64url

DIRECTORY_MAX_AGE_SECONDS: Final = 300
_PUBLISHED: Final = ("send_batch_messages", "receive_wait_seconds")  # and all that end in _bytes


async def directory(services: Services, call: Call[None]) -> Answer[dict[str, Any]]:
    """Say where everything is, and how large it may be (appendix A)."""
    config = services.config
    limits = {
        field.name: getattr(config.limits, field.name)
        for field in attrs.fields(Limits)
        if field.name.endswith("_bytes") or field.name in _PUBLISHED
    }
    identity = await services.store.read(identity_public)
    if identity is None:
        raise Busy("still starting")
    body = {
        "provider": config.provider,
        "version": installed_version(),
        "endpoints": {row.name: config.listen.public_url + row.path for row in (*PUBLIC, *PROVIDERS)},
        "ohttp_identity": base64url(identity),
        "cipher_suites": sorted(SUITES),
        "limits": limits | {"bundle_max_requests": config.ohttp.bundle_max_requests},
    }
    return Answer(body, headers={"Cache-Control": f"max-age={DIRECTORY_MAX_AGE_SECONDS}"})


async def ohttp_keys(services: Services, call: Call[None]) -> Answer[bytes]:
    """Give the gateway's key configurations, signed."""
    return keys_answer(services.ohttp_keys.served())


async def ohttp_gateway(services: Services, call: Call[bytes]) -> Answer[bytes]:
    """Answer a sealed request; what can be sealed of a refusal is."""
    return Answer(await services.gateway.answer(call.body), headers={"Cache-Control": "no-store"})


def keys_answer(keys: KeysAnswer) -> Answer[bytes]:
    """Return key configurations with their signature, to be kept no longer than they live."""
    cache = f"max-age={keys.max_age}" if keys.max_age else "no-store"
    headers = {"Cache-Control": cache} | ({KEYS_SIGNATURE: keys.signature} if keys.signature else {})
    return Answer(keys.body, headers=headers)


def installed_version() -> str:
    """Return the version of the package."""
    try:
        return version("mimids")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0"


PUBLIC: Final[tuple[Endpoint, ...]] = (
    Endpoint(
        name="directory",
        listener=Listener.PUBLIC,
        method="GET",
        path="/.well-known/mimi-ds",
        access=Access.ANYONE,
        request=None,
        answer=json_answer(
            '{"provider", "version", "endpoints": {NAME: URL}, "ohttp_identity", "cipher_suites": [..], '
            '"limits": {NAME: number}}',
            '{"provider":"a.example","version":"0.1.0","endpoints":{"send":"https://a.example/ds/v1/send"},'
            '"ohttp_identity":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","cipher_suites":[1,2,3],'
            '"limits":{"max_body_bytes":16777216}}',
        ),
        handler=directory,
        summary="where everything is, and how large it may be",
        problems=(Busy,),
    ),
    Endpoint(
        name="ohttp-keys",
        listener=Listener.PUBLIC,
        method="GET",
        path="/.well-known/ohttp-gateway",
        access=Access.ANYONE,
        request=None,
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
        access=Access.ANYONE,
        request=octets(OHTTP_REQUEST),
        answer=octets(OHTTP_RESPONSE),
        handler=ohttp_gateway,
        summary="sealed requests for KeyPackages; errors after opening travel sealed",
        limit="ohttp_bytes",
        problems=(OhttpKey, OhttpUndecipherable, RateLimited, StorageUnavailable),
        unlinkable=True,
    ),
)
