"""The endpoint table and its handlers."""
