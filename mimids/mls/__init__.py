"""RFC 9420 as far as a server without secrets can check it. Nothing here waits, reads a clock or opens anything."""
