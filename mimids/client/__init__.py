"""The device side, for clients and tests. It needs neither the server nor an MLS library.

It runs under trio and asyncio, and handles MLS objects as bytes. docs/client.md shows how to use it.
"""

from mimids.client import requests
from mimids.client.connection import BranchTerminated, Problem, Unreachable
from mimids.client.contacts import Contact, SignedKeys
from mimids.client.device import Device, open_device
from mimids.client.duties import Departure, Expected, UnexpectedCommit, check_commit
from mimids.client.events import Arrived, Event, LowStock, NotServed
from mimids.client.key_packages import Stock, Token, Uploaded
from mimids.client.sending import Sending
from mimids.client.stream import Stream, StreamStatistics
from mimids.ds.backoff import Backoff
from mimids.wire.messages import InboxWelcome

__all__ = [
    "Arrived",
    "Backoff",
    "BranchTerminated",
    "Contact",
    "Departure",
    "Device",
    "Event",
    "Expected",
    "InboxWelcome",
    "LowStock",
    "NotServed",
    "Problem",
    "Sending",
    "SignedKeys",
    "Stock",
    "Stream",
    "StreamStatistics",
    "Token",
    "UnexpectedCommit",
    "Unreachable",
    "Uploaded",
    "check_commit",
    "open_device",
    "requests",
]
