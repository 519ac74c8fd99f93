"""Bytes and values: the codec engine, and the structures that mimids puts on the wire."""
