-- Policy: the operator's bans and mutes, the terms between hubs and followers, reports, and the state of rate limits.
-- Times are milliseconds since the epoch. An expires_at of NULL means: never.

-- Users, or whole providers, who are banned from all groups that this provider hosts.
CREATE TABLE bans (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id BLOB UNIQUE,
    provider TEXT UNIQUE,
    reason TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    CHECK ((user_id IS NULL) <> (provider IS NULL))
) STRICT;

-- Users who are muted in one group that this provider hosts, or in all of them (empty group_id).
CREATE TABLE mutes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id BLOB NOT NULL,
    group_id BLOB NOT NULL,
    reason TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    UNIQUE (user_id, group_id)
) STRICT;

-- As hub: the terms offered to each other provider. Each change of their content increments the revision.
CREATE TABLE offered_terms (
    provider INTEGER PRIMARY KEY REFERENCES providers (id),
    revision INTEGER NOT NULL,
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    changed_at INTEGER NOT NULL,
    accepted_revision INTEGER,
    accepted_at INTEGER
) STRICT;

-- As follower: the newest terms that each hub offers, and those that we accepted, which are in force.
CREATE TABLE accepted_terms (
    hub INTEGER PRIMARY KEY REFERENCES providers (id),
    offered_revision INTEGER NOT NULL,
    offered TEXT NOT NULL,                         -- JSON: the parts that we understand
    fetched_at INTEGER NOT NULL,
    accepted_revision INTEGER,
    accepted TEXT,
    accepted_at INTEGER,
    acknowledged INTEGER NOT NULL DEFAULT 0 CHECK (acknowledged IN (0, 1))  -- the hub confirmed our acceptance
) STRICT;

-- How the accepted terms restrict our own users: a row for each ban (group_id NULL) or mute (empty: in all groups).
CREATE TABLE accepted_restrictions (
    hub INTEGER NOT NULL REFERENCES providers (id),
    user_id BLOB NOT NULL,
    group_id BLOB,
    UNIQUE (hub, user_id, group_id)
) STRICT;

CREATE TABLE reports (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    digest BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),  -- of the content, without the reporter
    reporter_device INTEGER,                       -- one of our devices
    reporter_provider INTEGER,                     -- or another provider; both NULL: this server itself
    hub TEXT NOT NULL,
    group_id BLOB,
    accused TEXT NOT NULL,
    kind TEXT NOT NULL,
    note TEXT NOT NULL,
    evidence BLOB NOT NULL,                        -- opaque evidence<V><V>: MLSMessages
    received_at INTEGER NOT NULL,
    replayed_at INTEGER,                           -- when the evidence was examined
    findings TEXT NOT NULL DEFAULT '[]',           -- JSON: the result for each piece of evidence
    passed_on_at INTEGER,
    passed_on_to TEXT,
    closed_at INTEGER,
    outcome TEXT
) STRICT;
CREATE INDEX reports_by_device ON reports (reporter_device, received_at) WHERE reporter_device IS NOT NULL;
CREATE INDEX reports_by_provider ON reports (reporter_provider, received_at) WHERE reporter_provider IS NOT NULL;
CREATE INDEX reports_to_replay ON reports (id) WHERE replayed_at IS NULL;
CREATE INDEX reports_by_age ON reports (received_at);

-- Token buckets of the rate limits, saved so that a restart does not refill them. A full bucket has no row.
CREATE TABLE rate_buckets (
    rate TEXT NOT NULL,
    key TEXT NOT NULL,
    tokens_left REAL NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (rate, key)
) STRICT, WITHOUT ROWID;
