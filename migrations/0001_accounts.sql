-- Who this provider serves, and whom it knows.
-- Times are milliseconds since the epoch. Device tokens are stored as SHA-256 only.

CREATE TABLE settings (
    name TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE users (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id BLOB NOT NULL UNIQUE,            -- the octets of mimi://PROVIDER/u/NAME
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE devices (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    user INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    token_digest BLOB NOT NULL UNIQUE CHECK (length(token_digest) = 32),
    created_at INTEGER NOT NULL,
    UNIQUE (user, name)
) STRICT;

-- Other providers, by domain: a small number for what refers to them often.
CREATE TABLE providers (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    domain TEXT NOT NULL UNIQUE
) STRICT;
