"""The device side, for clients and tests. It needs neither the server nor an MLS library.

It runs under trio and asyncio, and handles MLS objects as bytes. docs/client.md shows how to use it.
"""

from mimids.client import requests
from mimids.client.connection import (
    BranchTerminated,
    CommitSuperseded,
    CounterAhead,
    GroupReplaced,
    Problem,
    Unreachable,
)
from mimids.client.contacts import Contact, SignedKeys
from mimids.client.device import Device, FoundGroup, open_device
from mimids.client.duties import Departure, Expected, UnexpectedCommit, check_commit
from mimids.client.events import Arrived, Event, LowStock, NotServed, StartedAgain
from mimids.client.external_senders import ProviderSignatureKey, external_senders_data
from mimids.client.key_packages import Stock, Token, Uploaded
from mimids.client.key_sets import KeysDiffer, KeySets
from mimids.client.linear import CommitAttempt, commit_with_retry, join_with_retry
from mimids.client.sending import Sending
from mimids.client.stream import Stream, StreamStatistics
from mimids.ds.backoff import Backoff
from mimids.wire.messages import CaughtUp, InboxWelcome, Position, WelcomeState, WelcomeStatus

__all__ = [
    "Arrived",
    "Backoff",
    "BranchTerminated",
    "CaughtUp",
    "CommitAttempt",
    "CommitSuperseded",
    "Contact",
    "CounterAhead",
    "Departure",
    "Device",
    "Event",
    "Expected",
    "FoundGroup",
    "GroupReplaced",
    "InboxWelcome",
    "KeySets",
    "KeysDiffer",
    "LowStock",
    "NotServed",
    "Position",
    "Problem",
    "ProviderSignatureKey",
    "Sending",
    "SignedKeys",
    "StartedAgain",
    "Stock",
    "Stream",
    "StreamStatistics",
    "Token",
    "UnexpectedCommit",
    "Unreachable",
    "Uploaded",
    "WelcomeState",
    "WelcomeStatus",
    "check_commit",
    "commit_with_retry",
    "external_senders_data",
    "join_with_retry",
    "open_device",
    "requests",
]
