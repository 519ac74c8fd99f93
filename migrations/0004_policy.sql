-- Policy: whom the operator bans and mutes, the terms between hubs and followers, reports, and rates in use.
-- Times are milliseconds since the epoch; an expires_at that is NULL never comes.

-- From all groups that this provider hosts: a user, or another provider as a whole.
CREATE TABLE bans (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id BLOB UNIQUE,
    provider TEXT UNIQUE,
    reason TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    CHECK ((user_id IS NULL) <> (provider IS NULL))
) STRICT;

-- In one group that this provider hosts, or (empty group_id) in all of them.
CREATE TABLE mutes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id BLOB NOT NULL,
    group_id BLOB NOT NULL,
    reason TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    UNIQUE (user_id, group_id)
) STRICT;

-- As hub: what terms each other provider was given. The revision counts the changes of their content.
CREATE TABLE terms_given (
    provider INTEGER PRIMARY KEY REFERENCES providers (id),
    revision INTEGER NOT NULL,
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    changed_at INTEGER NOT NULL,
    accepted_revision INTEGER,
    accepted_at INTEGER
) STRICT;

-- As follower: the newest terms of each hub, and those that we accepted, which are in force.
CREATE TABLE terms_taken (
    hub INTEGER PRIMARY KEY REFERENCES providers (id),
    offered_revision INTEGER NOT NULL,
    offered TEXT NOT NULL,                         -- JSON, what we understand of it
    fetched_at INTEGER NOT NULL,
    accepted_revision INTEGER,
    accepted TEXT,
    accepted_at INTEGER,
    told INTEGER NOT NULL DEFAULT 0 CHECK (told IN (0, 1))  -- the hub has confirmed that it knows
) STRICT;

-- What the accepted terms say of our own users: one row for each ban (no group_id) or mute (empty: in all groups).
CREATE TABLE hub_terms (
    hub INTEGER NOT NULL REFERENCES providers (id),
    user_id BLOB NOT NULL,
    group_id BLOB,
    UNIQUE (hub, user_id, group_id)
) STRICT;

CREATE TABLE reports (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    digest BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),  -- of what it says, not of who says it
    device INTEGER,                                -- the reporter: one of our devices,
    provider INTEGER,                              -- or another provider; neither: this server itself
    hub TEXT NOT NULL,
    group_id BLOB,
    accused TEXT NOT NULL,
    kind TEXT NOT NULL,
    note TEXT NOT NULL,
    evidence BLOB NOT NULL,                        -- opaque evidence<V><V>: MLSMessages
    received_at INTEGER NOT NULL,
    replayed_at INTEGER,
    findings TEXT NOT NULL DEFAULT '[]',           -- JSON: what was found of each piece of evidence
    passed_on_at INTEGER,
    passed_on_to TEXT,
    closed_at INTEGER,
    outcome TEXT
) STRICT;
CREATE INDEX reports_by_device ON reports (device, received_at) WHERE device IS NOT NULL;
CREATE INDEX reports_by_provider ON reports (provider, received_at) WHERE provider IS NOT NULL;
CREATE INDEX reports_to_replay ON reports (id) WHERE replayed_at IS NULL;
CREATE INDEX reports_by_age ON reports (received_at);

-- Token buckets, so that a restart does not refill them; a full one has no row.
CREATE TABLE rate_buckets (
    rate TEXT NOT NULL,
    key TEXT NOT NULL,
    left REAL NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (rate, key)
) STRICT, WITHOUT ROWID;
