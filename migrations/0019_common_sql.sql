-- A number of its own for each kept answer: PostgreSQL has no rowid, and every statement is one for both databases.
CREATE TABLE new_ohttp_replays (
    id INTEGER PRIMARY KEY,                            -- the order of storing; the oldest are deleted first
    enc BLOB NOT NULL UNIQUE CHECK (length(enc) = 32),  -- of the encapsulated request (RFC 9458 section 4.3)
    digest BLOB NOT NULL CHECK (length(digest) = 32),  -- SHA-256 of the whole encapsulated request
    keep_until INTEGER NOT NULL,
    response BLOB,                                     -- sealed; NULL: it is sealed again
    nonce BLOB,                                        -- of the response
    sealed_at INTEGER,
    items BLOB,                                        -- status and shared KeyPackage of each item of the answer
    CHECK ((response IS NULL) = (nonce IS NOT NULL AND sealed_at IS NOT NULL AND items IS NOT NULL))
) STRICT;
INSERT INTO new_ohttp_replays (enc, digest, keep_until, response, nonce, sealed_at, items)
    SELECT enc, digest, keep_until, response, nonce, sealed_at, items FROM ohttp_replays ORDER BY rowid;
DROP TABLE ohttp_replays;
ALTER TABLE new_ohttp_replays RENAME TO ohttp_replays;

-- With `kind` as a column, SQLite chooses this index for the commits of a partition without being told to.
DROP INDEX commits;
CREATE INDEX commits ON messages (partition, kind, counter, next_masked_key) WHERE kind = 3;
