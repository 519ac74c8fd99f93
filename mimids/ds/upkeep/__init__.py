"""Upkeep: retention and sweeping."""
