"""Every refusal that a caller may see, in one tree; each class has its code, HTTP status and title.

`str(error)` is safe to send; the exception's cause is only logged. `http/api/problems.py` writes errors as
`application/problem+json`, with the type `urn:mimids:problem:CODE`. Any other exception is a fault of ours and is
answered with a bare 500.

The file is a little long because it is the whole list: the table of refusals in docs/http.md is printed from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import ClassVar

Member = str | int | float | list[str]


class MimiError(Exception):
    """A refusal that the caller may see; `members` are additional members of its problem document."""

    code: ClassVar[str]
    status: ClassVar[HTTPStatus]
    title: ClassVar[str]
    type_uri: ClassVar[str | None] = None  # set if an RFC defines the problem type

    def __init__(self, detail: str = "", **members: Member) -> None:
        super().__init__(detail or self.title)
        self.members: Mapping[str, Member] = members

    @classmethod
    def problem_type(cls) -> str:
        """Return the URI of this kind of problem (RFC 9457 section 3.1.1)."""
        return cls.type_uri or f"urn:mimids:problem:{cls.code}"


# --- the request itself -----------------------------------------------------------------------------------------


class Malformed(MimiError):
    """The body or a parameter cannot be decoded; the detail says where."""

    code, status, title = "malformed", HTTPStatus.BAD_REQUEST, "malformed request"


class UnsupportedMediaType(MimiError):
    """Content-Type is not the media type of this endpoint."""

    code, status, title = "unsupported-media-type", HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported media type"


class TooLarge(MimiError):
    """The body or an object in it exceeds a limit; `limit` names the limit, `octets` is the size."""

    code, status, title = "too-large", HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too large"

    def __init__(self, limit: str, octets: int) -> None:
        super().__init__(f"{octets} octets exceed the limit {limit}", limit=limit, octets=octets)


class TooMany(MimiError):
    """The request has more items than `limit` allows."""

    code, status, title = "too-many", HTTPStatus.BAD_REQUEST, "too many items in one request"

    def __init__(self, limit: str, items: int) -> None:
        super().__init__(f"{items} items exceed the limit {limit}", limit=limit, items=items)


class NotFound(MimiError):
    """The path does not exist, or nothing has that name or id."""

    code, status, title = "not-found", HTTPStatus.NOT_FOUND, "not found"


class NameTaken(MimiError):
    """A user or device has that name already, or a removed user had it."""

    code, status, title = "name-taken", HTTPStatus.CONFLICT, "name already in use"


class MethodNotAllowed(MimiError):
    """The path exists, but not with this method; Allow lists the methods."""

    code, status, title = "method-not-allowed", HTTPStatus.METHOD_NOT_ALLOWED, "method not allowed"


class TimedOut(MimiError):
    """The request body did not arrive in time."""

    code, status, title = "request-timeout", HTTPStatus.REQUEST_TIMEOUT, "the request body did not arrive in time"


# --- the caller --------------------------------------------------------------------------------------------------


class Unauthenticated(MimiError):
    """The device token is missing or unknown, or its user is suspended; `detail` says if the user is suspended."""

    code, status, title = "unauthenticated", HTTPStatus.UNAUTHORIZED, "missing or unknown device token"


class OriginNotAllowed(MimiError):
    """A page opens a stream, but the operator has not listed the origin of the page in `web_origins`."""

    code, status, title = "origin-not-allowed", HTTPStatus.FORBIDDEN, "pages of this origin may not use this provider"


class CertificateRequired(MimiError):
    """The endpoint is for providers, and the connection has no client certificate."""

    code, status, title = "certificate-required", HTTPStatus.UNAUTHORIZED, "client certificate required"


class CertificateMismatch(MimiError):
    """The certificate does not name the provider in From; without From, it must name exactly one provider."""

    code, status, title = (
        "certificate-mismatch",
        HTTPStatus.FORBIDDEN,
        "the certificate does not name the caller",
    )


class ProviderNotAllowed(MimiError):
    """The provider is not on the allow-list, is banned, or has an address that may not be contacted."""

    code, status, title = "provider-not-allowed", HTTPStatus.FORBIDDEN, "provider not allowed"


# --- KeyPackages and OHTTP --------------------------------------------------------------------------------------


class KeyPackageRefused(MimiError):
    """The user is unknown, or the token is wrong, revoked, expired or used up; all cases get the same answer."""

    code, status, title = "key-package-refused", HTTPStatus.FORBIDDEN, "unknown user or token"


class KeyPackagesExhausted(MimiError):
    """The token is valid, but the user has no KeyPackages left for this version and cipher suite."""

    code, status, title = "key-packages-exhausted", HTTPStatus.NOT_FOUND, "no KeyPackages left"


class OhttpKey(MimiError):
    """The key id is unknown, or the key is not offered with this suite (RFC 9458 section 5.3)."""

    code, status, title = "ohttp-key", HTTPStatus.BAD_REQUEST, "key configuration not accepted"
    type_uri = "https://iana.org/assignments/http-problem-types#ohttp-key"


class OhttpDate(MimiError):
    """The inner request has no Date, or its Date is too far from our time (RFC 9458 section 6.5.2)."""

    code, status, title = "date", HTTPStatus.BAD_REQUEST, "Date missing or too far from our time"
    type_uri = "https://iana.org/assignments/http-problem-types#date"


class OhttpUndecipherable(MimiError):
    """The encapsulated request cannot be decrypted."""

    code, status, title = "ohttp-undecipherable", HTTPStatus.BAD_REQUEST, "the encapsulated request cannot be decrypted"


class OhttpReplayed(MimiError):
    """The encapsulated key was used before, with another request."""

    code, status, title = "ohttp-replayed", HTTPStatus.BAD_REQUEST, "the encapsulated key was used before"


class Busy(MimiError):
    """The server cannot serve the request now; try again after `retry_after` seconds."""

    code, status, title = "busy", HTTPStatus.SERVICE_UNAVAILABLE, "busy, try again later"

    def __init__(self, detail: str = "", *, retry_after: int = 5) -> None:
        super().__init__(detail, retry_after=retry_after)


# --- groups -----------------------------------------------------------------------------------------------------


class UnknownGroup(MimiError):
    """The group is unknown here, or the caller may not join it; both cases get the same answer."""

    code, status, title = "unknown-group", HTTPStatus.NOT_FOUND, "unknown group"


class GroupExists(MimiError):
    """A group with that id was created before, with other contents."""

    code, status, title = "group-exists", HTTPStatus.CONFLICT, "group id already in use"


class UnknownPartition(MimiError):
    """No partition has that key."""

    code, status, title = "unknown-partition", HTTPStatus.NOT_FOUND, "unknown partition"


class MessagesExpired(MimiError):
    """Retention deleted the messages asked for; `next_counter` is the counter of the first that is kept."""

    code, status, title = "messages-expired", HTTPStatus.GONE, "messages deleted by retention"


class CounterAhead(MimiError):
    """The counter is beyond the partition's end, or beyond its end at a restore; start again at `next_counter`."""

    code, status, title = "counter-ahead", HTTPStatus.CONFLICT, "counter beyond the end of the partition"

    def __init__(self, next_counter: int) -> None:
        super().__init__(
            f"the messages before this counter are not stored; continue at {next_counter}", next_counter=next_counter
        )


class PartitionExists(MimiError):
    """The next partition key belongs to a partition that another commit already leads to."""

    code, status, title = "partition-exists", HTTPStatus.CONFLICT, "partition key already in use"


class WrongEpoch(MimiError):
    """The message is of another epoch than its partition, whose epoch is `epoch`."""

    code, status, title = "wrong-epoch", HTTPStatus.CONFLICT, "wrong epoch"


class WrongBranch(MimiError):
    """The signature is valid only in another branch of the group."""

    code, status, title = "wrong-branch", HTTPStatus.CONFLICT, "message made in another branch"


class BranchTerminated(MimiError):
    """The hub terminated this branch: its messages can still be received; clients must not rejoin automatically."""

    code, status, title = "branch-terminated", HTTPStatus.CONFLICT, "branch terminated"


class CommitSuperseded(MimiError):
    """The linear group has a commit of this epoch, which is at `counter` and opens the partition `next_masked_key`."""

    code, status, title = "commit-superseded", HTTPStatus.CONFLICT, "another commit of this epoch came first"

    def __init__(self, counter: int, next_masked_key: str) -> None:
        super().__init__(
            f"receive the commit at counter {counter}, apply it, and commit again in its epoch",
            counter=counter,
            next_masked_key=next_masked_key,
        )


class GroupOpen(MimiError):
    """A branch of the group is not terminated, so the group cannot be replaced yet."""

    code, status, title = "group-open", HTTPStatus.CONFLICT, "a branch of the group is open"


class GroupReplaced(MimiError):
    """Another group replaces this one: `group_id` (base64url) at `hub`. A client must not join it by itself."""

    code, status, title = "group-replaced", HTTPStatus.GONE, "group replaced by another one"

    def __init__(self, group_id: str, hub: str) -> None:
        super().__init__(f"another group at {hub} replaces this one", group_id=group_id, hub=hub)


class CommitDataDiffers(MimiError):
    """The same commit was accepted before with another next partition key, GroupInfo or Welcome."""

    code, status, title = "commit-data-differs", HTTPStatus.CONFLICT, "commit accepted before with other commit data"


class InvalidMessage(MimiError):
    """The message breaks a rule of MLS in the branch of its partition; `rule` and `section` say which."""

    code, status, title = "invalid-message", HTTPStatus.UNPROCESSABLE_ENTITY, "invalid MLS message"


class RatchetTreeNeeded(MimiError):
    """The GroupInfo has no ratchet_tree extension, and the hub knows no tree that matches it."""

    code, status, title = "ratchet-tree-needed", HTTPStatus.UNPROCESSABLE_ENTITY, "ratchet_tree extension required"


class GroupInfoMismatch(MimiError):
    """The GroupInfo is not of the epoch that the commit starts, or its signature is wrong."""

    code, status, title = (
        "group-info-mismatch",
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "GroupInfo does not match",
    )


class WelcomeMismatch(MimiError):
    """The Welcome does not fit its commit or its group, or service_providers does not fit the Welcome."""

    code, status, title = "welcome-mismatch", HTTPStatus.UNPROCESSABLE_ENTITY, "Welcome does not match"


class WelcomeNotExpected(MimiError):
    """The hub did not announce any of the Welcome's KeyPackages with `welcome-init` before."""

    code, status, title = "welcome-not-expected", HTTPStatus.CONFLICT, "Welcome not expected"


class NotFollowed(MimiError):
    """The caller does not follow this partition, or no such partition or group exists; all get the same answer."""

    code, status, title = "not-followed", HTTPStatus.FORBIDDEN, "partition not followed by the caller"


# --- policy -----------------------------------------------------------------------------------------------------


class PolicyRefused(MimiError):
    """A rule of policy refuses the message in the branch of its partition; `rule`, `section` and `read` say why."""

    code, status, title = "policy", HTTPStatus.FORBIDDEN, "refused by policy"


class RateLimited(MimiError):
    """The device or provider exceeds the rate `limit`; try again after `retry_after` seconds."""

    code, status, title = "rate-limited", HTTPStatus.TOO_MANY_REQUESTS, "rate limit exceeded"

    def __init__(self, limit: str, retry_after: int) -> None:
        super().__init__(f"the rate limit {limit} is exceeded", limit=limit, retry_after=retry_after)
        self.retry_after = retry_after


class QuotaExceeded(MimiError):
    """The device or provider has used up the quota `limit`."""

    code, status, title = "quota-exceeded", HTTPStatus.TOO_MANY_REQUESTS, "quota exceeded"

    def __init__(self, limit: str) -> None:
        super().__init__(f"the quota {limit} is exhausted", limit=limit)


class ArrangementRequired(MimiError):
    """The caller must accept the hub's terms first; `revision` is the current one."""

    code, status, title = "arrangement-required", HTTPStatus.FORBIDDEN, "the hub's terms must be accepted first"


class ArrangementOutdated(MimiError):
    """The caller accepts an old revision of the terms; `revision` is the current one."""

    code, status, title = "arrangement-outdated", HTTPStatus.CONFLICT, "outdated revision of the terms"


# --- servers ----------------------------------------------------------------------------------------------------


class StorageUnavailable(MimiError):
    """The database cannot be written, often because the disk is full; reading still works."""

    code, status, title = "storage-unavailable", HTTPStatus.SERVICE_UNAVAILABLE, "storage cannot be written"
    damage: str = ""  # what is wrong, if the database is damaged; for the operator only


class Recovering(MimiError):
    """The hub was restored from a backup and is fetching later messages; try again after `retry_after` seconds."""

    code, status, title = (
        "recovering",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "group locked during recovery",
    )

    def __init__(self, detail: str = "", *, retry_after: int = 5) -> None:
        super().__init__(detail, retry_after=retry_after)


class PeerUnavailable(MimiError):
    """Another provider did not answer or has a fault; try again after `retry_after` seconds."""

    code, status, title = "peer-unavailable", HTTPStatus.SERVICE_UNAVAILABLE, "the other provider is unavailable"

    def __init__(self, detail: str = "", *, retry_after: int = 5) -> None:
        super().__init__(detail, retry_after=retry_after)


class PeerFailed(MimiError):
    """Another provider answered with something that is not a valid answer."""

    code, status, title = "peer-failed", HTTPStatus.BAD_GATEWAY, "invalid answer from the other provider"


class ShuttingDown(MimiError):
    """The server is shutting down; try again, since it usually restarts at once."""

    code, status, title = "shutting-down", HTTPStatus.SERVICE_UNAVAILABLE, "the server is shutting down"


class Internal(MimiError):
    """A fault of this server; its log has the details under the id in `Mimids-Request-Id`."""

    code, status, title = "internal", HTTPStatus.INTERNAL_SERVER_ERROR, "internal error"


def every_error() -> list[type[MimiError]]:
    """Return all classes of errors in the order of their declaration, for the table in docs/http.md."""
    found: list[type[MimiError]] = []
    waiting = list(MimiError.__subclasses__())
    while waiting:
        kind = waiting.pop(0)
        found.append(kind)
        waiting[:0] = kind.__subclasses__()
    return found
