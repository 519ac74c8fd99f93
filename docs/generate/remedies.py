"""What a device does after each problem, for docs/http.md.

`Again.LATER` says that the same request, octet for octet, may succeed later. A test compares this table with
`mimids.client.Problem.is_temporary`, and checks that no problem is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

from mimids import errors
from mimids.errors import MimiError


class Again(Enum):
    """Whether a request that was refused should be sent again."""

    LATER = "the same, later"
    CHANGED = "changed"
    NO = "no"


REMEDIES: Final[Mapping[type[MimiError], tuple[Again, str]]] = {
    errors.Malformed: (Again.CHANGED, "correct the request at the place that `detail` names"),
    errors.UnsupportedMediaType: (Again.CHANGED, "correct the Content-Type"),
    errors.TooLarge: (Again.CHANGED, "make it smaller; `limit` is in the directory or in `me`"),
    errors.TooMany: (Again.CHANGED, "split the request"),
    errors.NotFound: (Again.NO, "the name, id or path is wrong, or the thing was deleted"),
    errors.NameTaken: (Again.CHANGED, "choose another name"),
    errors.MethodNotAllowed: (Again.CHANGED, "use a method of Allow"),
    errors.TimedOut: (Again.LATER, "immediately the first time; then with back-off"),
    errors.Unauthenticated: (Again.NO, "ask the operator for a new token, or to resume the user"),
    errors.OriginNotAllowed: (Again.NO, "only the operator can allow the page's origin"),
    errors.CertificateRequired: (Again.NO, "devices do not call this endpoint"),
    errors.CertificateMismatch: (Again.NO, "devices do not call this endpoint"),
    errors.ProviderNotAllowed: (Again.NO, "only the operators of the two providers can change that"),
    errors.KeyPackageRefused: (Again.CHANGED, "get a new contact card; give up if its token is refused too"),
    errors.KeyPackagesExhausted: (Again.CHANGED, "ask for another suite, or ask again after some hours"),
    errors.OhttpKey: (Again.CHANGED, "fetch the key configurations again and encapsulate anew, but only once"),
    errors.OhttpDate: (Again.CHANGED, "correct the Date by the Date of the answer and encapsulate anew, but only once"),
    errors.OhttpUndecipherable: (Again.CHANGED, "correct the encapsulation"),
    errors.OhttpReplayed: (Again.CHANGED, "encapsulate anew, with a new ephemeral key"),
    errors.Busy: (Again.LATER, "after `retry_after` seconds"),
    errors.UnknownGroup: (Again.NO, "another provider is the hub, or the device may not join"),
    errors.GroupExists: (Again.CHANGED, "choose another group id"),
    errors.UnknownPartition: (Again.CHANGED, "first receive the commit that opens the partition, or use another key"),
    errors.MessagesExpired: (Again.CHANGED, "ask from `next_counter`; earlier messages are deleted"),
    errors.CounterAhead: (
        Again.CHANGED,
        "ask from `next_counter`; drop the messages that you had from that counter on",
    ),
    errors.PartitionExists: (Again.NO, "the key was used before: it was not exported from a new epoch"),
    errors.WrongEpoch: (Again.CHANGED, "receive the missing messages, and make the message again in the current epoch"),
    errors.WrongBranch: (Again.CHANGED, "use the partition key of the epoch in which the message was made"),
    errors.BranchTerminated: (Again.NO, "tell the user; never rejoin automatically"),
    errors.CommitSuperseded: (
        Again.CHANGED,
        "receive the commit at `counter`, apply it, and commit again in its epoch; to join, call group-info again",
    ),
    errors.GroupOpen: (Again.NO, "the operator has to terminate every branch first"),
    errors.GroupReplaced: (Again.NO, "show `group_id` and `hub` to the user; never join by itself"),
    errors.CommitDataDiffers: (Again.CHANGED, "repeat the commit with the same CommitData as the first time"),
    errors.InvalidMessage: (Again.NO, "`rule` and `section` name the fault of the client"),
    errors.RatchetTreeNeeded: (Again.CHANGED, "add the ratchet_tree extension to the GroupInfo"),
    errors.GroupInfoMismatch: (Again.CHANGED, "send the GroupInfo of the epoch that the commit starts"),
    errors.WelcomeMismatch: (Again.CHANGED, "correct the Welcome or service_providers"),
    errors.WelcomeNotExpected: (Again.NO, "devices do not call this endpoint"),
    errors.NotFollowed: (Again.NO, "devices do not call this endpoint"),
    errors.PolicyRefused: (Again.NO, "`rule` says what is forbidden, and to whom"),
    errors.RateLimited: (Again.LATER, "after `retry_after` seconds"),
    errors.QuotaExceeded: (Again.LATER, "after some hours, or when you have fewer of the things that `limit` counts"),
    errors.ArrangementRequired: (Again.NO, "the operator has to accept the hub's terms"),
    errors.ArrangementOutdated: (Again.NO, "devices do not call this endpoint"),
    errors.StorageUnavailable: (Again.LATER, "with back-off"),
    errors.Recovering: (Again.LATER, "after `retry_after` seconds"),
    errors.PeerUnavailable: (Again.LATER, "after `retry_after` seconds, then with back-off"),
    errors.PeerFailed: (Again.LATER, "with back-off, a few times"),
    errors.ShuttingDown: (Again.LATER, "after a second or two"),
    errors.Internal: (Again.LATER, "with back-off, a few times; then tell the operator the id"),
}
