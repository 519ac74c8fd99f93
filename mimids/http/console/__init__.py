"""The operator's web pages (http: console): what needs the operator, what is stored, and a form for each command.

It is a Quart application beside the table of endpoints; `mount.py` imports it when the first page is asked for.
"""
