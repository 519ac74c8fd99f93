"""The device side, for those who write clients and tests; needs no server code."""
