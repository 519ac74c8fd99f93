"""Real providers for tests, alone or federated; see docs/testing.md.

Each provider is a process of its own, so importing this package changes nothing in the importing process. Pytest loads
it in every run where mimids is installed, so each name is imported only when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mimids.testing.devices import DeviceAccount
    from mimids.testing.federations import Federation, Link, federation
    from mimids.testing.groups import PretendGroup, content_of
    from mimids.testing.provider import Provider, ProviderClock, ProviderFailed
    from mimids.testing.push_server import PushEndpoint, PushService, ReceivedPush, push_service
    from mimids.testing.session import Session
    from mimids.testing.waiting import open_federation

_MODULES = {
    "DeviceAccount": "devices",
    "Federation": "federations",
    "Link": "federations",
    "PretendGroup": "groups",
    "Provider": "provider",
    "ProviderClock": "provider",
    "ProviderFailed": "provider",
    "ReceivedPush": "push_server",
    "PushEndpoint": "push_server",
    "PushService": "push_server",
    "Session": "session",
    "content_of": "groups",
    "federation": "federations",
    "open_federation": "waiting",
    "push_service": "push_server",
}

__all__ = [
    "DeviceAccount",
    "Federation",
    "Link",
    "PretendGroup",
    "Provider",
    "ProviderClock",
    "ProviderFailed",
    "PushEndpoint",
    "PushService",
    "ReceivedPush",
    "Session",
    "content_of",
    "federation",
    "open_federation",
    "push_service",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
