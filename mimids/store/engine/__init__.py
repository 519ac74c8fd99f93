"""The database engine: the store's queue, transactions, SQLite, migrations, and the lock of the data directory."""
