"""Web Push without I/O: subscriptions, the encryption of a push (RFC 8291), and the proof of its sender (RFC 8292)."""
