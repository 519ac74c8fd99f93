"""Check outgoing Welcomes, and store them in the transaction that accepts their commit.

A repeat of the commit may bring a missing Welcome, or a Welcome that must be sent again because it was not delivered.

(semantics: welcomes-and-leaving)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence

import attrs

from mimids.ds.limits.welcomes import DEVICE_WAITING, PROVIDER_WAITING, SECRETS
from mimids.errors import BranchTerminated, CommitDataDiffers, QuotaExceeded, TooMany, WelcomeMismatch
from mimids.mls.welcome import Welcome
from mimids.store import providers, welcome_outcomes, welcomes
from mimids.store.engine.transaction import Tx
from mimids.store.groups import Group
from mimids.store.messages import digest_of
from mimids.store.partitions import Partition
from mimids.store.welcome_outcomes import WelcomeOutcome
from mimids.values import Milliseconds
from mimids.wire.ids import KeyPackageRef, ProviderId
from mimids.wire.messages import WelcomeData

Recipient = tuple[KeyPackageRef, ProviderId]


def sender_number(provider: int, device: int | None) -> int:
    """Return the number of a sender in the rows of Welcomes: its device's row, or its provider's row negated."""
    return -provider if device is None else device


def recipients_of(data: WelcomeData, group: Group, added: Collection[KeyPackageRef] | None) -> Sequence[Recipient]:
    """Return each reference of a Welcome with its provider.

    `added` is the references that the Welcome's commit adds, None if they are not known. A Welcome for only some of
    these is valid, because MLS allows several Welcomes for one commit (RFC 9420 section 12.4.3.1).

    Raises `WelcomeMismatch` unless this is a Welcome of the group's suite with one provider for each secret, and all
    its references are among `added`.
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
    refs = welcome.key_package_refs
    strange = None if added is None else next((at for at, ref in enumerate(refs) if ref not in added), None)
    if strange is not None:
        raise WelcomeMismatch("the Welcome has a secret for a KeyPackage that the commit does not add", secret=strange)
    return list(zip(refs, data.service_providers, strict=True))


@attrs.frozen
class WelcomeQueue:
    """Stores Welcomes. If `allowed` is false for a provider, its Welcome is recorded as refused, and not queued.

    So the provider of a refused Welcome is not added to the table of providers. The commit is accepted even if the
    provider is not allowed, because the hub must not judge a group by its own allow-list.
    """

    allowed: Callable[[ProviderId], bool]  # this provider itself is allowed, too

    def check_waiting(self, tx: Tx, sender: int) -> None:
        """Raise `QuotaExceeded` if too many Welcomes of the sender are not delivered yet."""
        most = DEVICE_WAITING if sender > 0 else PROVIDER_WAITING
        if welcomes.count_waiting(tx, sender, at_most=most) >= most:
            raise QuotaExceeded("device_welcomes" if sender > 0 else "provider_welcomes")

    def missing(
        self, tx: Tx, data: WelcomeData, recipients: Sequence[Recipient], partition: Partition
    ) -> list[Recipient]:
        """Return the recipients to which a repeated commit's Welcome must still be sent; the commit opened `partition`.

        These are the references without a Welcome, and the references whose Welcome was not delivered. Raises
        `CommitDataDiffers` if another Welcome for one of the references waits or was delivered, `BranchTerminated` if a
        reference is new in a terminated branch, and `TooMany`.
        """
        known: defaultdict[KeyPackageRef, list[WelcomeOutcome]] = defaultdict(list)
        for outcome in welcome_outcomes.outcomes_of(tx, partition.id):
            for ref in outcome.refs:
                known[ref].append(outcome)
        digest = digest_of(data.welcome.encoded)
        found = [(ref, provider) for ref, provider in recipients if _is_missing(known.get(ref, ()), digest, provider)]
        if partition.terminated:
            if any(ref not in known for ref, _ in found):
                raise BranchTerminated
            return []
        again = {ref for ref, _ in found}
        references = len(found) + sum(len(each) for ref, each in known.items() if ref not in again)
        if references > SECRETS:
            raise TooMany("welcome_secrets", references)
        return found

    def queue(
        self,
        tx: Tx,
        data: WelcomeData,
        recipients: Sequence[Recipient],
        partition: int,
        *,
        sender: int,
        held: bool,
        now: Milliseconds,
    ) -> None:
        """Store a Welcome for each provider to which it goes; the caller has made all checks.

        A `held` Welcome is not sent before its branch is used (semantics: welcomes-and-leaving).
        """
        refs: defaultdict[ProviderId, list[KeyPackageRef]] = defaultdict(list)
        not_allowed: list[KeyPackageRef] = []
        for ref, provider in recipients:
            (refs[provider] if self.allowed(provider) else not_allowed).append(ref)
        if not_allowed:
            welcome_outcomes.add_unsendable(tx, partition, not_allowed, now)
        if not refs:
            return
        row = welcomes.keep_welcome(tx, data.welcome.encoded, now)
        for provider in refs:
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


def _is_missing(outcomes: Sequence[WelcomeOutcome], digest: bytes, provider: ProviderId) -> bool:
    """Tell whether a Welcome for a reference with these outcomes is yet to be sent; raise `CommitDataDiffers`."""
    in_force = [each for each in outcomes if not each.undelivered]
    if not in_force:
        return True
    if any((each.digest, each.provider) == (digest, provider) for each in outcomes):
        return False
    raise CommitDataDiffers("another Welcome for the same KeyPackage waits or was delivered")
