"""The database in PostgreSQL 15 or newer, by psycopg on the store's threads; imported only where it is used."""
