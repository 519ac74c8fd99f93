"""Web Push without I/O: subscriptions, the encryption of a push (RFC 8291), and who sends it (RFC 8292)."""
