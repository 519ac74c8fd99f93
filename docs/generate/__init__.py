"""Prints those parts of docs/ that are made from code."""
