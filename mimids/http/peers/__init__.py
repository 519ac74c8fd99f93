"""Calls to other providers."""
