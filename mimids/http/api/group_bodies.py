"""JSON bodies about groups."""

from __future__ import annotations

from typing import Any, Final, TypedDict

from mimids.ds.groups.successors import named_successor
from mimids.http.api.bodies import json_object
from mimids.store.groups import Successor


class SuccessorMembers(TypedDict):
    """The JSON members that name the group which replaces another one."""

    group_id: str
    hub: str


def _successor(members: dict[str, Any]) -> Successor:
    successor = named_successor(members)
    if successor is None:
        raise ValueError("group_id must be base64url, and hub the name of a provider")
    return successor


SUCCESSOR: Final = json_object(
    _successor,
    '{"group_id": base64url, "hub": the provider that hosts that group}',
    '{"group_id":"bWltaTovL2IuZXhhbXBsZS9nLzI","hub":"b.example"}',
    SuccessorMembers,
)
