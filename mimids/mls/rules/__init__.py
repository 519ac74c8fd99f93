"""The rules of RFC 9420 and its drafts that a server without the group's secrets can check."""
