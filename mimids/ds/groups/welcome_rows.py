"""Outgoing Welcomes: checked, and stored in the transaction that accepts their commit.

(semantics: welcomes-and-leaving)
"""

from __future__ import annotations

from collections import defaultdict

from mimids.errors import WelcomeMismatch
from mimids.mls.welcome import Welcome
from mimids.store import providers, welcomes
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.values import Milliseconds
from mimids.wire.ids import KeyPackageRef, ProviderId
from mimids.wire.messages import WelcomeData


def check_welcome(data: WelcomeData, group: Group) -> None:
    """Raise `WelcomeMismatch` unless this is a Welcome of the group's suite with as many providers as secrets."""
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


def queue_welcome(tx: Tx, data: WelcomeData, partition: int, *, held: bool, now: Milliseconds) -> None:
    """Store a Welcome for each provider it goes to; `check_welcome` was called before.

    A `held` Welcome is not sent before its branch is used (semantics: welcomes-and-leaving).
    """
    message = data.welcome.message
    if not isinstance(message, Welcome):
        raise TypeError("not a Welcome")
    refs: defaultdict[ProviderId, list[KeyPackageRef]] = defaultdict(list)
    for ref, provider in zip(message.key_package_refs, data.service_providers, strict=True):
        refs[provider].append(ref)
    row = welcomes.keep_welcome(tx, data.welcome.encoded, now)
    for provider, theirs in refs.items():
        number = providers.ensure_provider(tx, provider)
        welcomes.add_outgoing(tx, welcome=row, partition=partition, provider=number, refs=theirs, held=held, now=now)
