"""Which hub a device's request goes to."""

from __future__ import annotations

from collections.abc import Callable

from mimids.ds.devices.hubs import Hub
from mimids.ds.devices.own_hub import OwnHub
from mimids.wire.ids import ProviderId


class HubRouter:
    """Returns the hub of a provider: `own` for this provider, otherwise one made by `remote`."""

    def __init__(self, own: OwnHub, remote: Callable[[ProviderId], Hub]) -> None:
        self._own = own
        self._remote = remote

    def hub(self, provider: ProviderId) -> Hub:
        """Return the hub of a provider.

        Whether the provider really runs a hub is not checked: if it does not, the first call fails.
        """
        return self._own if provider == self._own.provider else self._remote(provider)
