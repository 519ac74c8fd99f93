"""Outgoing Welcomes: checked, and stored in the transaction that accepts their commit.

(semantics: welcomes-and-leaving)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import attrs

from mimids.ds.limits.welcomes import DEVICE_WAITING, PROVIDER_WAITING
from mimids.errors import QuotaExceeded, WelcomeMismatch
from mimids.mls.welcome import Welcome
from mimids.store import providers, welcomes
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.values import Milliseconds
from mimids.wire.ids import KeyPackageRef, ProviderId
from mimids.wire.messages import WelcomeData


def sender_number(provider: int, device: int | None) -> int:
    """Return the number of a sender in the rows of Welcomes: its device's row, or its provider's row negated."""
    return -provider if device is None else device


@attrs.frozen
class WelcomeQueue:
    """Checks Welcomes and stores them; a provider for which `allowed` is false gets no row.

    So a name that this hub may not contact costs nothing. The commit is accepted all the same: the hub must not judge a
    group by its own allow-list.
    """

    allowed: Callable[[ProviderId], bool]  # this provider itself is allowed, too

    def check(self, tx: Tx, data: WelcomeData, group: Group, sender: int) -> None:
        """Raise `WelcomeMismatch` unless this is a Welcome of the group's suite with one provider for each secret.

        Raises `QuotaExceeded` if too many Welcomes of the sender are not delivered yet.
        """
        welcome = data.welcome.message
        if not isinstance(welcome, Welcome):
            raise WelcomeMismatch("welcome_data holds no Welcome")
        if welcome.cipher_suite != group.cipher_suite:
            raise WelcomeMismatch("the Welcome is of another cipher suite")
        # Later revision, "Sending Messages": service_providers MUST be the same length as the secrets array.
        if len(welcome.secrets) != len(data.service_providers):
            raise WelcomeMismatch(
                "service_providers must have one entry for each secret of the Welcome",
                secrets=len(welcome.secrets),
                service_providers=len(data.service_providers),
            )
        most = DEVICE_WAITING if sender > 0 else PROVIDER_WAITING
        if welcomes.count_waiting(tx, sender, at_most=most) >= most:
            raise QuotaExceeded("device_welcomes" if sender > 0 else "provider_welcomes")

    def queue(self, tx: Tx, data: WelcomeData, partition: int, *, sender: int, held: bool, now: Milliseconds) -> None:
        """Store a Welcome for each provider it goes to; `check` was called before.

        A `held` Welcome is not sent before its branch is used (semantics: welcomes-and-leaving).
        """
        message = data.welcome.message
        if not isinstance(message, Welcome):
            raise TypeError("not a Welcome")
        refs: defaultdict[ProviderId, list[KeyPackageRef]] = defaultdict(list)
        for ref, provider in zip(message.key_package_refs, data.service_providers, strict=True):
            refs[provider].append(ref)
        allowed = [provider for provider in refs if self.allowed(provider)]
        if not allowed:
            return
        row = welcomes.keep_welcome(tx, data.welcome.encoded, now)
        for provider in allowed:
            number = providers.ensure_provider(tx, provider)
            welcomes.add_outgoing(
                tx,
                welcome=row,
                partition=partition,
                provider=number,
                refs=refs[provider],
                sender=sender,
                held=held,
                now=now,
            )
