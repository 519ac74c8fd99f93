"""Our own users' devices: their accounts, what they may send, the hubs of their groups, and their streams."""
