"""Prints the parts of the documents that come from code, and lists the pages of the documentation site."""
