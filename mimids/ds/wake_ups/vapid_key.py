"""The key pair by which push services recognise this provider; it is stored like the gateway's keys.

It is made once, at the first start with Web Push, and never changes: browsers accept only pushes that are signed with
the key with which they subscribed.
"""

from __future__ import annotations

import secrets
from typing import Final

from mimids.ohttp.at_rest import NONCE_SIZE, OperatorKey, Protection, protect, unprotect
from mimids.store import ohttp
from mimids.store.engine.transaction import Tx
from mimids.web_push.message import SCALAR_OCTETS, private_value
from mimids.web_push.vapid import PRIVATE_OCTETS, VapidKey
from mimids.wire.ids import Secret

_PRIVATE: Final = "vapid_private"
_PLACE: Final = b"mimids vapid"


def ensure_vapid_key(tx: Tx, operator_key: OperatorKey | None) -> VapidKey:
    """Return the provider's key; make it if there is none. Raise `KeyUnavailable`.

    If the key is stored in the clear and there is an operator key now, it is encrypted with the operator key.
    """
    stored = ohttp.setting(tx, _PRIVATE)
    if stored is None:
        octets = private_value(secrets.token_bytes(SCALAR_OCTETS)).to_bytes(PRIVATE_OCTETS, "big")
    else:
        octets = unprotect(stored, _PLACE, operator_key)
    if stored is None or (operator_key is not None and stored[:1] == bytes([Protection.PLAIN])):
        sealed = protect(Secret(octets), _PLACE, operator_key, secrets.token_bytes(NONCE_SIZE))
        ohttp.put_setting(tx, _PRIVATE, sealed)
    return VapidKey.of(octets)


def load_vapid_key(tx: Tx, operator_key: OperatorKey | None) -> VapidKey | None:
    """Return the provider's key, None if there is none yet; raise `KeyUnavailable`."""
    stored = ohttp.setting(tx, _PRIVATE)
    return None if stored is None else VapidKey.of(unprotect(stored, _PLACE, operator_key))
