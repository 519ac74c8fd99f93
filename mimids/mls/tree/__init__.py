"""Ratchet trees (RFC 9420 section 7)."""
