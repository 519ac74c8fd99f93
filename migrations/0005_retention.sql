-- State of retention, of quotas, and of recovery after a restore. Times are milliseconds since the epoch.

-- No message below this counter has a body.
ALTER TABLE partitions ADD COLUMN kept_from INTEGER NOT NULL DEFAULT 0;
-- Octets pushed before any of our devices was known to be in the group.
ALTER TABLE groups ADD COLUMN unmatched_bytes INTEGER NOT NULL DEFAULT 0;
-- Since when the provider does not answer; NULL: it answers.
ALTER TABLE peers ADD COLUMN failing_since INTEGER;
-- Why nothing is pushed: retrying cannot help, the operator must act. NULL: not suspended.
ALTER TABLE follows ADD COLUMN suspended_reason TEXT;

-- Up to where each of our devices has each partition whose key it presented: everything below next_counter.
CREATE TABLE device_cursors (
    device INTEGER NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
    partition INTEGER NOT NULL REFERENCES partitions (id) ON DELETE CASCADE,
    next_counter INTEGER NOT NULL,
    seen_at INTEGER NOT NULL,
    PRIMARY KEY (device, partition)
) STRICT, WITHOUT ROWID;
CREATE INDEX device_cursors_of_partition ON device_cursors (partition);

-- Quotas no longer count partitions that retention emptied or that the operator terminated.
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

-- To find Welcomes that no row refers to any more, and rows that are old enough to delete.
CREATE INDEX outgoing_welcomes_of_welcome ON outgoing_welcomes (welcome);
CREATE INDEX inbox_of_welcome ON inbox (welcome);
CREATE INDEX outgoing_welcomes_by_age ON outgoing_welcomes (created_at);
CREATE INDEX inbox_by_age ON inbox (arrived_at);
CREATE INDEX welcomes_by_age ON welcomes (stored_at);
CREATE INDEX expected_welcomes_by_age ON expected_welcomes (accepted_at);

-- The sweep of tree_nodes, while one is running: the nodes known to be in use. `pending`: its children are not marked yet.
CREATE TABLE tree_marks (
    hash BLOB PRIMARY KEY,
    pending INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX tree_marks_pending ON tree_marks (hash) WHERE pending = 1;
CREATE TABLE tree_sweep (                                   -- one row while a sweep is running
    id INTEGER PRIMARY KEY CHECK (id = 1),
    marked_partition INTEGER NOT NULL DEFAULT 0,            -- the roots of partitions up to this one are marked
    swept_hash BLOB NOT NULL DEFAULT x''                    -- once all marks are made: nodes up to this one are swept
) STRICT;

-- After a restore: the providers that must still answer which messages of a group they have. The group is held until all
-- have answered. Group 0 stands for the question which groups they know.
CREATE TABLE recoveries (
    group_ref INTEGER NOT NULL,
    provider INTEGER NOT NULL REFERENCES providers (id),
    answered INTEGER NOT NULL DEFAULT 0 CHECK (answered IN (0, 1)),
    PRIMARY KEY (group_ref, provider)
) STRICT, WITHOUT ROWID;
