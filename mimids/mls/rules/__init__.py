"""The rules of RFC 9420 that an observer can check."""
