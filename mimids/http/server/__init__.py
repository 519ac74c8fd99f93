"""Sockets, TLS, HTTP/1.1 and WebSocket: from an address to an ASGI application."""
