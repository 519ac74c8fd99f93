"""The endpoint table, the listeners that serve it, and calls to other providers."""
