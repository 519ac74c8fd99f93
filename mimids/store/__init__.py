"""SQLite: one writer, readers beside it, numbered migrations; SQL stands in the function that runs it."""
