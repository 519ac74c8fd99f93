"""The API: tables of endpoints, their handlers, and the code that serves a table.

`endpoints` says what an endpoint is; `public`, `providers`, `devices`, `operator` and `operator_socket` are the
tables; `table` answers requests from them, and `asgi` connects it to the server.
"""
