"""MLS (RFC 9420) as far as a server without secrets can check it. No I/O, no clock, no randomness but in signing."""
