"""The device side, for those who write clients and tests; needs no server code and no MLS library.

It runs under trio and under asyncio, and handles MLS objects as bytes.
"""

from mimids.client.connection import Problem, Unreachable
from mimids.client.contacts import Contact, SignedKeys
from mimids.client.device import Device, Stock, Token, Uploaded, open_device

__all__ = [
    "Contact",
    "Device",
    "Problem",
    "SignedKeys",
    "Stock",
    "Token",
    "Unreachable",
    "Uploaded",
    "open_device",
]
