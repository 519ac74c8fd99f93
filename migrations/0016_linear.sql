-- Linear groups, in which an epoch has one commit, and groups that another group replaces.

ALTER TABLE groups ADD COLUMN linear INTEGER NOT NULL DEFAULT 0 CHECK (linear IN (0, 1));

-- The group that replaces this one: it is set once all branches of this one are terminated.
ALTER TABLE groups ADD COLUMN successor_group_id BLOB;
ALTER TABLE groups ADD COLUMN successor_hub TEXT CHECK ((successor_hub IS NULL) = (successor_group_id IS NULL));
