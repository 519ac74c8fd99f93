-- Several processes may serve a provider that is stored in PostgreSQL (docs/decisions/0021). In SQLite, where one process
-- serves a file, both tables stay as they are.

-- One row: a number that grows when rows change that processes cache. In PostgreSQL triggers raise it.
CREATE TABLE changes (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    generation INTEGER NOT NULL
) STRICT;
INSERT INTO changes (id, generation) VALUES (1, 0);

-- The processes that serve the provider now. The database's clock is used, so that those of the machines do not matter.
CREATE TABLE processes (
    name TEXT PRIMARY KEY,                         -- of the machine, the number of the process, and a random part
    since INTEGER NOT NULL,                        -- milliseconds since the epoch
    seen_at INTEGER NOT NULL,
    runs_jobs INTEGER NOT NULL CHECK (runs_jobs IN (0, 1))
) STRICT;
