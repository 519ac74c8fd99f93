"""The arguments of a command as the audit table stores them: no secrets, and numbers instead of our users' names.

An entry never changes, but a removed user must be forgotten. So an argument that names one of our users or devices is
kept as `{"user": 7}` or `{"device": 12}`. These numbers are never given out again. Once the user or the device is
removed, no other row contains them. Users of other providers are kept by their ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Final, cast

from mimids.ds.devices import accounts
from mimids.errors import MimiError
from mimids.store.engine.transaction import Tx
from mimids.values import DeviceRow, UserRow
from mimids.wire.ids import ProviderId, local_user_id

LISTED: Final = 100  # names of one argument that are kept; further names are only counted

Person = str | dict[str, int | None]  # an id at another provider, or a row here; None if it is not known (yet)


class Named(Enum):
    """The user or device that an argument names."""

    USER = "a user, or several"
    DEVICE = "a device of the user in the argument `user`"
    SUBJECT = "a user, or a provider"


def persons(
    tx: Tx, provider: ProviderId, named: Mapping[str, Named], given: Mapping[str, object]
) -> dict[str, list[Person]]:
    """Return the users and devices that the arguments in `named` name and that exist in this transaction."""
    found = {}
    for name, kind in named.items():
        value = given.get(name)
        if value is not None:
            names = [value] if isinstance(value, str) else cast("Sequence[str]", value)
            found[name] = [_person(tx, provider, kind, each, given) for each in names[:LISTED]]
    return found


def recorded(
    given: Mapping[str, object], before: Mapping[str, list[Person]], after: Mapping[str, list[Person]]
) -> dict[str, Any]:
    """Return the arguments to store.

    Persons are looked up before the command runs, or afterwards if the command added them.
    """
    kept = dict(given)
    for name, earlier in before.items():
        found = [late if _is_unknown(early) else early for early, late in zip(earlier, after[name], strict=True)]
        value = given[name]
        more = 0 if isinstance(value, str) or not isinstance(value, Sequence) else len(value) - len(found)
        kept[name] = found[0] if isinstance(value, str) else [*found, *([f"and {more} more"] if more else [])]
    return kept


def _person(tx: Tx, provider: ProviderId, kind: Named, written: str, given: Mapping[str, object]) -> Person:
    if kind is Named.DEVICE:
        return {"device": _device(tx, provider, str(given.get("user", "")), written)}
    if written.startswith("mimi:") and not written.startswith(local_user_id(provider, "").decode()):
        return written  # a user of another provider
    if kind is Named.SUBJECT and "." in written and not written.startswith("mimi:"):
        return written  # a domain
    return {"user": _user(tx, provider, written)}


def _user(tx: Tx, provider: ProviderId, user: str) -> UserRow | None:
    try:
        return accounts.find_user(tx, provider, user)[0]
    except MimiError:
        return None


def _device(tx: Tx, provider: ProviderId, user: str, name: str) -> DeviceRow | None:
    try:
        return accounts.find_device(tx, provider, user, name).row
    except MimiError:
        return None


def _is_unknown(person: Person) -> bool:
    return isinstance(person, dict) and None in person.values()
