"""The names of our own headers, in lower case, except the one with key signatures (`ohttp.keys_signature.HEADER`).

This module also has the `User-Agent` by which the operator socket recognises a command in a shell.
"""

from __future__ import annotations

from typing import Final

ARRANGEMENT: Final = "mimids-arrangement"  # the current revision of a provider's terms (semantics: terms-and-reports)
LINEAR: Final = "mimids-linear"  # ?1 on an answer about a linear group (semantics: linear-groups)
REQUEST_ID: Final = "mimids-request-id"  # on a 500: the request's id in the log
SHELL_AGENT: Final = "mimids"  # the User-Agent of `mimids NOUN VERB`
