-- Users, their devices, and the other providers.
-- Times are milliseconds since the epoch. Of a device token, only the SHA-256 is stored.

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
    owner INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    token_digest BLOB NOT NULL UNIQUE CHECK (length(token_digest) = 32),
    created_at INTEGER NOT NULL,
    UNIQUE (owner, name)
) STRICT;

-- Providers by domain, this one too. Other tables refer to a provider by its id, which is shorter.
CREATE TABLE providers (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    domain TEXT NOT NULL UNIQUE
) STRICT;
