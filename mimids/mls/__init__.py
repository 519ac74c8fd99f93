"""MLS (RFC 9420) as far as a server without secrets can check it. No I/O and no clock; only signing uses randomness."""
