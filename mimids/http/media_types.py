"""The media types of requests and answers."""

from __future__ import annotations

from typing import Final

MIMI_DS: Final = "application/mimi-ds"
MESSAGE_MLS: Final = "message/mls"  # RFC 9420 section 17.11
OHTTP_KEYS: Final = "application/ohttp-keys"  # RFC 9458 section 3.2, as the next two
OHTTP_REQUEST: Final = "message/ohttp-req"
OHTTP_RESPONSE: Final = "message/ohttp-res"
JSON: Final = "application/json"
PROBLEM_JSON: Final = "application/problem+json"  # RFC 9457


def without_parameters(content_type: str) -> str:
    """Return the media type of a Content-Type header, in lower case and without its parameters."""
    return content_type.partition(";")[0].strip().lower()
