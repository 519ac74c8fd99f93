"""Encoding and decoding: the codec engine, the identifiers, and the structures that mimids puts on the wire."""
