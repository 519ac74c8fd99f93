"""Prints the parts of the documents that come from code."""
