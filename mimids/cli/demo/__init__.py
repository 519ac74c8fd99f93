"""`mimids demo`: three providers on loopback, and a recorded conversation of a real MLS implementation."""
