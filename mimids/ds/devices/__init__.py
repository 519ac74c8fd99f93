"""Our own users' devices: accounts, what they may send, streams."""
