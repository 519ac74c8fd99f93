"""Listeners, connections, HTTP protocols and TLS."""
