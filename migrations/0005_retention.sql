-- What retention, quotas and recovery after a restore have to remember. Times are milliseconds since the epoch.

ALTER TABLE partitions ADD COLUMN kept_from INTEGER NOT NULL DEFAULT 0;      -- no message below this counter has a body
ALTER TABLE groups ADD COLUMN unmatched_bytes INTEGER NOT NULL DEFAULT 0;    -- pushed before any device of ours took part
ALTER TABLE peers ADD COLUMN failing_since INTEGER;                          -- since when it does not answer; NULL: it does
ALTER TABLE follows ADD COLUMN suspended_reason TEXT;                                -- no repetition mends it: the operator's turn

-- How far each device of ours has come in each partition whose key it presented: it has what is below next_counter.
CREATE TABLE device_cursors (
    device INTEGER NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
    partition INTEGER NOT NULL REFERENCES partitions (id) ON DELETE CASCADE,
    next_counter INTEGER NOT NULL,
    seen_at INTEGER NOT NULL,
    PRIMARY KEY (device, partition)
) STRICT, WITHOUT ROWID;
CREATE INDEX device_cursors_of_partition ON device_cursors (partition);

-- Quotas count what is there: neither what retention emptied nor what the operator ended.
DROP INDEX idle_branches;
DROP INDEX detached_partitions;
CREATE INDEX idle_branches ON partitions (opener_provider, opener_device, group_ref)
    WHERE next_counter = 0 AND detached = 0 AND expired_at IS NULL AND terminated_by IS NULL;
CREATE INDEX detached_partitions ON partitions (opener_provider, opener_device)
    WHERE detached = 1 AND expired_at IS NULL;
CREATE INDEX detached_by_age ON partitions (opened_at) WHERE detached = 1;
CREATE INDEX groups_of_creator ON groups (creator_device) WHERE creator_device IS NOT NULL;
CREATE INDEX unmatched_groups ON groups (hub, created_at) WHERE unmatched_bytes > 0;
CREATE INDEX follows_suspended ON follows (provider) WHERE suspended_reason IS NOT NULL;

-- Whatever refers to a Welcome, so that one that nothing refers to is found, and what is over.
CREATE INDEX welcomes_out_of_welcome ON welcomes_out (welcome);
CREATE INDEX inbox_of_welcome ON inbox (welcome);
CREATE INDEX welcomes_out_by_age ON welcomes_out (created_at);
CREATE INDEX inbox_by_age ON inbox (arrived_at);
CREATE INDEX welcomes_by_age ON welcomes (stored_at);
CREATE INDEX welcomes_expected_by_age ON welcomes_expected (accepted_at);

-- The sweep of tree_nodes, while one goes on: what was found to be in use. `todo`: its children were not looked at.
CREATE TABLE tree_marks (
    hash BLOB PRIMARY KEY,
    todo INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX tree_marks_todo ON tree_marks (hash) WHERE todo = 1;
CREATE TABLE tree_sweep (                                   -- one row while a sweep goes on
    id INTEGER PRIMARY KEY CHECK (id = 1),
    partition INTEGER NOT NULL DEFAULT 0,                   -- the roots of partitions up to this one are marked
    hash BLOB NOT NULL DEFAULT x''                          -- nodes up to this one were looked at, once all is marked
) STRICT;

-- After a restore: which providers have yet to say what they have of which group; until then it is held. Group 0:
-- which groups they know.
CREATE TABLE recoveries (
    group_ref INTEGER NOT NULL,
    provider INTEGER NOT NULL REFERENCES providers (id),
    answered INTEGER NOT NULL DEFAULT 0 CHECK (answered IN (0, 1)),
    PRIMARY KEY (group_ref, provider)
) STRICT, WITHOUT ROWID;
