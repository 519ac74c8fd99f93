"""Base64url without padding (RFC 4648 section 5), which JSON bodies, paths and commands use for octets."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode


def base64url(octets: bytes) -> str:
    """Return octets as base64url without padding."""
    return urlsafe_b64encode(octets).rstrip(b"=").decode()


def from_base64url(text: str) -> bytes:
    """Decode base64url with or without padding, since encoders differ; raise `ValueError` for anything else."""
    bare = text.removesuffix("=" * (-len(text.rstrip("=")) % 4))
    octets = urlsafe_b64decode(bare.encode("ascii") + b"=" * (-len(bare) % 4))
    if base64url(octets) != bare:
        raise ValueError("not base64url")
    return octets
