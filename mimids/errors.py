"""Every refusal a peer may see, in one tree: the class carries its code and status.

`str(error)` is safe to send; a cause is only logged. `http/api/problems.py` alone makes
`application/problem+json` of it, with the type `urn:mimids:problem:CODE`. Anything that is not in this tree is our
fault and becomes a bare 500.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import ClassVar

Member = str | int | float | list[str]


class MimiError(Exception):
    """A refusal the peer may see; `members` are the further members of its problem document."""

    code: ClassVar[str]
    status: ClassVar[HTTPStatus]
    title: ClassVar[str]
    type_uri: ClassVar[str | None] = None  # where an RFC defines the type, that one

    def __init__(self, detail: str = "", **members: Member) -> None:
        super().__init__(detail or self.title)
        self.members: Mapping[str, Member] = members

    @classmethod
    def problem_type(cls) -> str:
        """Return the URI of this kind of problem (RFC 9457 section 3.1.1)."""
        return cls.type_uri or f"urn:mimids:problem:{cls.code}"


# --- the request itself -----------------------------------------------------------------------------------------


class Malformed(MimiError):
    """The body or a parameter is not what the endpoint takes."""

    code, status, title = "malformed", HTTPStatus.BAD_REQUEST, "the request is malformed"


class UnsupportedMediaType(MimiError):
    """The body has another media type than the endpoint takes."""

    code, status, title = "unsupported-media-type", HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "wrong media type"


class TooLarge(MimiError):
    """The body, or an object in it, exceeds a limit; `limit` names it, `octets` is its size."""

    code, status, title = "too-large", HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "larger than a limit allows"

    def __init__(self, limit: str, octets: int) -> None:
        super().__init__(f"more than {limit} allows", limit=limit, octets=octets)


class TooMany(MimiError):
    """More items in one request than `limit` allows."""

    code, status, title = "too-many", HTTPStatus.BAD_REQUEST, "more items than one request may carry"

    def __init__(self, limit: str, items: int) -> None:
        super().__init__(f"more than {limit} allows", limit=limit, items=items)


class NotFound(MimiError):
    """No such path, or nothing of that name."""

    code, status, title = "not-found", HTTPStatus.NOT_FOUND, "nothing here"


class NameTaken(MimiError):
    """There is a user or device of that name already."""

    code, status, title = "name-taken", HTTPStatus.CONFLICT, "that name is taken"


class MethodNotAllowed(MimiError):
    """The path exists, the method does not."""

    code, status, title = "method-not-allowed", HTTPStatus.METHOD_NOT_ALLOWED, "the method is not allowed here"


class TimedOut(MimiError):
    """The request body did not arrive in time."""

    code, status, title = "request-timeout", HTTPStatus.REQUEST_TIMEOUT, "the request took too long to arrive"


# --- who asks ---------------------------------------------------------------------------------------------------


class Unauthenticated(MimiError):
    """No device token, or one that is not known."""

    code, status, title = "unauthenticated", HTTPStatus.UNAUTHORIZED, "a valid device token is needed"


class CertificateRequired(MimiError):
    """The endpoint is for providers, and the connection has no client certificate."""

    code, status, title = "certificate-required", HTTPStatus.UNAUTHORIZED, "a client certificate is needed"


class CertificateMismatch(MimiError):
    """The certificate does not name the provider in From, or, without From, not exactly one."""

    code, status, title = "certificate-mismatch", HTTPStatus.FORBIDDEN, "the certificate does not name the caller"


class ProviderNotAllowed(MimiError):
    """The provider is not on the allow-list, is banned here, or may not be contacted."""

    code, status, title = "provider-not-allowed", HTTPStatus.FORBIDDEN, "this provider is not federated with"


# --- KeyPackages and OHTTP --------------------------------------------------------------------------------------


class KeyPackageRefused(MimiError):
    """Unknown user or wrong, revoked, expired or used-up token: one answer, nobody can tell them apart."""

    code, status, title = "key-package-refused", HTTPStatus.FORBIDDEN, "unknown user or token"


class KeyPackagesExhausted(MimiError):
    """The token is right, and the user has no KeyPackage left for this version and suite."""

    code, status, title = "key-packages-exhausted", HTTPStatus.NOT_FOUND, "no KeyPackage is left"


class OhttpKey(MimiError):
    """The key id is not known, or the suite is not one that the key has (RFC 9458 section 5.3)."""

    code, status, title = "ohttp-key", HTTPStatus.UNPROCESSABLE_ENTITY, "key configuration not accepted"
    type_uri = "https://iana.org/assignments/http-problem-types#ohttp-key"


class OhttpDate(MimiError):
    """The inner request has no Date, or one outside the window (RFC 9458 section 6.5.2)."""

    code, status, title = "date", HTTPStatus.BAD_REQUEST, "date is missing or outside the window"
    type_uri = "https://iana.org/assignments/http-problem-types#date"


class OhttpUndecipherable(MimiError):
    """The encapsulated request does not open."""

    code, status, title = "ohttp-undecipherable", HTTPStatus.BAD_REQUEST, "the encapsulated request does not open"


class OhttpReplayed(MimiError):
    """The encapsulated key was seen with another request."""

    code, status, title = "ohttp-replayed", HTTPStatus.BAD_REQUEST, "this encapsulation was used before"


class Busy(MimiError):
    """Nothing is wrong with the request, there is no room for it now; `retry_after` is in seconds."""

    code, status, title = "busy", HTTPStatus.SERVICE_UNAVAILABLE, "no room now"

    def __init__(self, detail: str = "", *, retry_after: int = 5) -> None:
        super().__init__(detail, retry_after=retry_after)


# --- groups -----------------------------------------------------------------------------------------------------


class UnknownGroup(MimiError):
    """No such group here, or not one that the caller may join: one answer."""

    code, status, title = "unknown-group", HTTPStatus.NOT_FOUND, "unknown group"


class GroupExists(MimiError):
    """A group of that id was created before, with other contents."""

    code, status, title = "group-exists", HTTPStatus.CONFLICT, "a group of that id exists"


class UnknownPartition(MimiError):
    """No partition has that key."""

    code, status, title = "unknown-partition", HTTPStatus.NOT_FOUND, "unknown partition"


class MessagesExpired(MimiError):
    """Retention emptied the messages asked for; the first that is left has index `next_counter`."""

    code, status, title = "messages-expired", HTTPStatus.GONE, "these messages are no longer kept"


class PartitionExists(MimiError):
    """The next partition key names a partition that a commit already leads to."""

    code, status, title = "partition-exists", HTTPStatus.CONFLICT, "a commit already leads to that partition"


class PartitionAmbiguous(MimiError):
    """More than one open partition could be meant, and the hub cannot tell which."""

    code, status, title = "partition-ambiguous", HTTPStatus.CONFLICT, "more than one fork could be meant"


class WrongEpoch(MimiError):
    """The message's epoch is not the one its partition stands for; `epoch` is that one."""

    code, status, title = "wrong-epoch", HTTPStatus.CONFLICT, "the partition stands for another epoch"


class WrongBranch(MimiError):
    """The signature fits the GroupContext of another branch of this group only."""

    code, status, title = "wrong-branch", HTTPStatus.CONFLICT, "the message was made in another fork"


class BranchTerminated(MimiError):
    """The hub ended this branch; receiving goes on, and clients must not rejoin automatically."""

    code, status, title = "branch-terminated", HTTPStatus.CONFLICT, "this branch was terminated"


class CommitDataDiffers(MimiError):
    """The same commit was accepted with another next partition key."""

    code, status, title = "commit-data-differs", HTTPStatus.CONFLICT, "accepted before with other commit data"


class InvalidMessage(MimiError):
    """The message breaks a rule of RFC 9420 in its fork; `rule` and `section` say which."""

    code, status, title = "invalid-message", HTTPStatus.UNPROCESSABLE_ENTITY, "the message is invalid in its fork"


class RatchetTreeNeeded(MimiError):
    """The GroupInfo has no ratchet_tree extension, and the hub infers no tree that matches it."""

    code, status, title = "ratchet-tree-needed", HTTPStatus.UNPROCESSABLE_ENTITY, "a ratchet_tree is needed"


class GroupInfoMismatch(MimiError):
    """The GroupInfo is not that of the epoch that the commit leads to, or does not verify."""

    code, status, title = "group-info-mismatch", HTTPStatus.UNPROCESSABLE_ENTITY, "the GroupInfo does not fit"


class WelcomeMismatch(MimiError):
    """service_providers and the Welcome's secrets differ in length, or a Welcome is where none may be."""

    code, status, title = "welcome-mismatch", HTTPStatus.UNPROCESSABLE_ENTITY, "the Welcome does not fit"


class WelcomeNotExpected(MimiError):
    """None of the Welcome's KeyPackages was accepted for this hub before."""

    code, status, title = "welcome-not-expected", HTTPStatus.CONFLICT, "nobody here expects this Welcome"


class NotFollowed(MimiError):
    """The provider does not follow this partition and may not ask for it to be pushed."""

    code, status, title = "not-followed", HTTPStatus.FORBIDDEN, "this partition is not followed by the caller"


# --- policy -----------------------------------------------------------------------------------------------------


class PolicyRefused(MimiError):
    """A rule of policy refuses the message in its fork; `rule`, `section` and what was read say why."""

    code, status, title = "policy", HTTPStatus.FORBIDDEN, "refused by policy in this fork"


class RateLimited(MimiError):
    """The device or the calling provider is over a rate; `retry_after` is in seconds."""

    code, status, title = "rate-limited", HTTPStatus.TOO_MANY_REQUESTS, "too many requests"

    def __init__(self, limit: str, retry_after: int) -> None:
        super().__init__(f"over {limit}", limit=limit, retry_after=retry_after)


class QuotaExceeded(MimiError):
    """The device or the calling provider holds as much as `limit` allows."""

    code, status, title = "quota-exceeded", HTTPStatus.TOO_MANY_REQUESTS, "over a quota"

    def __init__(self, limit: str) -> None:
        super().__init__(f"over {limit}", limit=limit)


class ArrangementRequired(MimiError):
    """The hub wants its terms accepted first; `revision` is the current one."""

    code, status, title = "arrangement-required", HTTPStatus.FORBIDDEN, "the hub's terms are not accepted"


class ArrangementOutdated(MimiError):
    """The revision is not the current one, which is `revision`."""

    code, status, title = "arrangement-outdated", HTTPStatus.CONFLICT, "that revision is not the current one"


# --- us and others ----------------------------------------------------------------------------------------------


class StorageUnavailable(MimiError):
    """The disk takes no writes; reads go on."""

    code, status, title = "storage-unavailable", HTTPStatus.SERVICE_UNAVAILABLE, "storage takes no writes now"


class Recovering(MimiError):
    """The hub was restored from a backup, and asks others what it sequenced since; `retry_after` is in seconds."""

    code, status, title = "recovering", HTTPStatus.SERVICE_UNAVAILABLE, "the group is held after a restore"

    def __init__(self, detail: str = "", *, retry_after: int = 5) -> None:
        super().__init__(detail, retry_after=retry_after)


class PeerUnavailable(MimiError):
    """Another provider did not answer; `retry_after` is in seconds."""

    code, status, title = "peer-unavailable", HTTPStatus.SERVICE_UNAVAILABLE, "the other provider does not answer"

    def __init__(self, detail: str = "", *, retry_after: int = 5) -> None:
        super().__init__(detail, retry_after=retry_after)


class PeerFailed(MimiError):
    """Another provider answered with what is no answer."""

    code, status, title = "peer-failed", HTTPStatus.BAD_GATEWAY, "the other provider's answer makes no sense"


class ShuttingDown(MimiError):
    """The process is ending; another attempt will reach its successor."""

    code, status, title = "shutting-down", HTTPStatus.SERVICE_UNAVAILABLE, "the server is restarting"


class Internal(MimiError):
    """A fault of this server; the log has it."""

    code, status, title = "internal", HTTPStatus.INTERNAL_SERVER_ERROR, "a fault of this server"


def every_error() -> list[type[MimiError]]:
    """Return all kinds of refusal, in the order they are declared, for the table in the docs."""
    found: list[type[MimiError]] = []
    waiting = list(MimiError.__subclasses__())
    while waiting:
        kind = waiting.pop(0)
        found.append(kind)
        waiting[:0] = kind.__subclasses__()
    return found
