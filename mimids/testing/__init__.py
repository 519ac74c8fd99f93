"""Real providers in a test, alone or federated: docs/testing.md.

Importing this changes nothing in the importing process; the providers are processes of their own. It is loaded into
every run of pytest where mimids is installed, so what stands behind the names is imported when a name is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mimids.testing.devices import DeviceAccount
    from mimids.testing.federations import Federation, Link, federation
    from mimids.testing.groups import PretendGroup, content_of
    from mimids.testing.provider import Clock, Provider, ProviderFailed
    from mimids.testing.session import Session
    from mimids.testing.waiting import open_federation

_MODULES = {
    "Clock": "provider",
    "DeviceAccount": "devices",
    "Federation": "federations",
    "Link": "federations",
    "PretendGroup": "groups",
    "Provider": "provider",
    "ProviderFailed": "provider",
    "Session": "session",
    "content_of": "groups",
    "federation": "federations",
    "open_federation": "waiting",
}

__all__ = [
    "Clock",
    "DeviceAccount",
    "Federation",
    "Link",
    "PretendGroup",
    "Provider",
    "ProviderFailed",
    "Session",
    "content_of",
    "federation",
    "open_federation",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
