-- Shares: who made us store a row, so that nobody takes what others need. Times are milliseconds since the epoch.

-- The row of the device that sent the commit, or minus the row of the provider that did. 0: sent before this migration.
ALTER TABLE outgoing_welcomes ADD COLUMN sender INTEGER NOT NULL DEFAULT 0;
DROP INDEX outgoing_welcomes_due;
CREATE INDEX outgoing_welcomes_due ON outgoing_welcomes (next_attempt_at, provider, sender)
    WHERE state IN ('due', 'offered');
CREATE INDEX outgoing_welcomes_next ON outgoing_welcomes (provider, sender, next_attempt_at)
    WHERE state IN ('due', 'offered');
CREATE INDEX outgoing_welcomes_waiting ON outgoing_welcomes (sender) WHERE state IN ('held', 'due', 'offered');

-- Answers to replays are stored whole only if all their KeyPackages were ordinary ones: each is handed out once. An
-- answer with a last resort is sealed again, to the same octets, from the nonce and the time of the first sealing, and
-- from KeyPackages that all such answers share.
DROP TABLE ohttp_replays;                              -- of the last few minutes; clients ask again
CREATE TABLE ohttp_replays (
    enc BLOB NOT NULL UNIQUE CHECK (length(enc) = 32),  -- of the encapsulated request (RFC 9458 section 4.3)
    digest BLOB NOT NULL CHECK (length(digest) = 32),  -- SHA-256 of the whole encapsulated request
    keep_until INTEGER NOT NULL,
    response BLOB,                                     -- sealed; NULL: it is sealed again
    nonce BLOB,                                        -- of the response
    sealed_at INTEGER,
    items BLOB,                                        -- status and shared KeyPackage of each item of the answer
    CHECK ((response IS NULL) = (nonce IS NOT NULL AND sealed_at IS NOT NULL AND items IS NOT NULL))
) STRICT;
CREATE TABLE ohttp_replay_packages (
    id INTEGER PRIMARY KEY,                            -- key_package_refs.id
    body BLOB NOT NULL,
    keep_until INTEGER NOT NULL                        -- the latest of the answers that have it
) STRICT;
CREATE INDEX ohttp_replay_packages_by_age ON ohttp_replay_packages (keep_until);
