"""Calls to other providers: connections, requests, and what their answers mean.

This package implements `ds.ports.PeerTransport`, and knows nothing of the endpoints in `http.api`.
"""
