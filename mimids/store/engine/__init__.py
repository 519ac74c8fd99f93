"""The database engine: writer, readers, driver, migrations, lock."""
