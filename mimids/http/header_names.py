"""The names of the headers that are our own, in lower case; that of key signatures is `ohttp.keys_signature.HEADER`."""

from __future__ import annotations

from typing import Final

ARRANGEMENT: Final = "mimids-arrangement"  # the current revision of a provider's terms (semantics: terms-and-reports)
REQUEST_ID: Final = "mimids-request-id"  # on a 500: the request's id in the log
