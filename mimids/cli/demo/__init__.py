"""`mimids demo`: three providers on loopback replay a recorded conversation of a real MLS implementation."""
