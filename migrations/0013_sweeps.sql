-- What sweeps need to visit only rows that are due, and what the operator's pages need to read few rows. Times are
-- milliseconds since the epoch.

-- The sweep of tree_nodes counts references in memory. While it runs, the nodes that are stored and the roots that
-- partitions get are noted here, so that none of them is deleted.
DROP TABLE tree_marks;
DROP TABLE tree_sweep;
CREATE TABLE tree_sweep (                                   -- one row, once a sweep has begun
    id INTEGER PRIMARY KEY CHECK (id = 1),
    began_at INTEGER NOT NULL,
    running INTEGER NOT NULL CHECK (running IN (0, 1))
) STRICT;
CREATE TABLE tree_notes (
    hash BLOB PRIMARY KEY
) STRICT, WITHOUT ROWID;

-- When retention plans the group again. A new group is due at once.
ALTER TABLE groups ADD COLUMN retention_due_at INTEGER NOT NULL DEFAULT 0;
-- 1: something of it is old, and kept only because somebody waits for it. It is due once a device of ours moves on.
ALTER TABLE groups ADD COLUMN retention_waits INTEGER NOT NULL DEFAULT 0 CHECK (retention_waits IN (0, 1));
CREATE INDEX groups_by_retention ON groups (retention_due_at);

-- 1: messages were sent in more than one of the partitions below. In a group without such a fork, the tip is the open
-- partition of the highest epoch.
ALTER TABLE partitions ADD COLUMN forked INTEGER NOT NULL DEFAULT 0 CHECK (forked IN (0, 1));
UPDATE partitions SET forked = 1 WHERE id IN
    (SELECT parent FROM partitions WHERE parent IS NOT NULL AND next_counter > 0 GROUP BY parent HAVING count(*) > 1);
CREATE INDEX forked_partitions ON partitions (group_ref) WHERE forked = 1;

-- For the sweep of KeyPackages and tokens, in pages.
CREATE INDEX key_packages_by_expiry ON key_packages (expires_at);
CREATE INDEX key_package_claims ON key_package_refs (claimed_at) WHERE token IS NOT NULL;
CREATE INDEX tokens_by_end ON tokens (coalesce(ended_at, expires_at));
CREATE INDEX tokens_by_rate ON tokens (rate_started_at) WHERE rate_started_at > 0;
CREATE INDEX tokens_by_abuse ON tokens (abuse_started_at) WHERE abuse_started_at > 0;

-- For the operator's pages.
CREATE INDEX outgoing_welcomes_to ON outgoing_welcomes (provider) WHERE state IN ('held', 'due', 'offered');
CREATE INDEX outgoing_welcomes_refused ON outgoing_welcomes (provider) WHERE state = 'refused';
CREATE INDEX reports_open ON reports (id) WHERE closed_at IS NULL;

-- For statements that read more rows than they need.
DROP INDEX partitions_by_parent;
CREATE INDEX partitions_by_parent ON partitions (parent, opened_by);
CREATE INDEX terminated_partitions ON partitions (terminated_by) WHERE terminated_by IS NOT NULL;
CREATE INDEX outgoing_welcomes_held ON outgoing_welcomes (created_at) WHERE state = 'held';
CREATE INDEX expected_welcomes_unmatched ON expected_welcomes (hub, accepted_at) WHERE matched_group IS NULL;
CREATE INDEX expected_welcomes_of_group ON expected_welcomes (matched_group) WHERE matched_group IS NOT NULL;
CREATE INDEX roots_of_group ON partitions (group_ref) WHERE parent IS NULL AND detached = 0;
CREATE INDEX unsendable_welcomes_by_age ON unsendable_welcomes (created_at);
