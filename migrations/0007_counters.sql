-- A bound on every counter that another provider can name: 2^31 - 1, as on the wire (wire: structures). A larger one
-- could not be sent, and ended the jobs that read it.
--
-- SQLite adds no CHECK to a table, so the tables are made anew. A partition whose next counter is too large was
-- damaged by its hub: it continues after the last message that it has below the bound.

CREATE TABLE new_partitions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    group_ref INTEGER NOT NULL REFERENCES groups (id),
    hub INTEGER NOT NULL,
    masked_key BLOB NOT NULL CHECK (length(masked_key) IN (32, 48, 64)),
    parent INTEGER REFERENCES partitions (id),     -- the partition that holds the commit leading to this one
    opened_by INTEGER,                             -- messages.seq of that commit; NULL: the first partition, or detached
    detached INTEGER NOT NULL DEFAULT 0 CHECK (detached IN (0, 1)),
    epoch INTEGER,                                 -- NULL: not known (detached)
    next_counter INTEGER NOT NULL DEFAULT 0 CHECK (next_counter BETWEEN 0 AND 2147483647),
    last_seq INTEGER NOT NULL DEFAULT 0,           -- messages.seq of its newest message
    knowledge TEXT NOT NULL DEFAULT 'unknown' CHECK (knowledge IN ('derived', 'claimed', 'unknown')),
    root_hash BLOB,                                -- root of the ratchet tree in tree_nodes; NULL when unknown
    group_context BLOB,
    confirmation_tag BLOB,
    reinitialized INTEGER NOT NULL DEFAULT 0,      -- a ReInit was committed: no further message is accepted
    group_info BLOB,                               -- MLSMessage, as received
    terminated_by INTEGER,                         -- the partition whose termination ended this one, possibly itself
    terminated_at INTEGER,                         -- set on that partition only
    terminated_reason TEXT,                        -- likewise
    -- Welcomes held until a message is sent here (semantics: welcomes-and-leaving)
    held_welcomes INTEGER NOT NULL DEFAULT 0,
    opener_provider INTEGER,                       -- whose quota it counts against
    opener_device INTEGER,
    opened_at INTEGER NOT NULL,
    expired_at INTEGER,                            -- when retention emptied it: key, epoch, parent and digests remain
    kept_from INTEGER NOT NULL DEFAULT 0 CHECK (kept_from BETWEEN 0 AND 2147483647),  -- no message below has a body
    UNIQUE (hub, masked_key)
) STRICT;
INSERT INTO new_partitions
    SELECT id, group_ref, hub, masked_key, parent, opened_by, detached, epoch,
        CASE WHEN next_counter BETWEEN 0 AND 2147483647 THEN next_counter ELSE coalesce(
            (SELECT max(counter) + 1 FROM messages WHERE partition = partitions.id AND counter < 2147483647), 0) END,
        last_seq, knowledge, root_hash, group_context, confirmation_tag, reinitialized, group_info, terminated_by,
        terminated_at, terminated_reason, held_welcomes, opener_provider, opener_device, opened_at, expired_at,
        CASE WHEN kept_from BETWEEN 0 AND 2147483647 THEN kept_from ELSE 0 END
    FROM partitions;
UPDATE sqlite_sequence SET seq = (SELECT seq FROM sqlite_sequence WHERE name = 'partitions')
    WHERE name = 'new_partitions';
DROP TABLE partitions;
ALTER TABLE new_partitions RENAME TO partitions;
CREATE INDEX partitions_of_group ON partitions (group_ref, epoch);
CREATE INDEX partitions_by_parent ON partitions (parent);
CREATE INDEX partitions_by_last_seq ON partitions (last_seq);
CREATE INDEX idle_branches ON partitions (opener_provider, opener_device, group_ref)
    WHERE next_counter = 0 AND detached = 0 AND expired_at IS NULL AND terminated_by IS NULL;
CREATE INDEX detached_partitions ON partitions (opener_provider, opener_device)
    WHERE detached = 1 AND expired_at IS NULL;
CREATE INDEX detached_by_age ON partitions (opened_at) WHERE detached = 1;

CREATE TABLE new_follows (
    provider INTEGER NOT NULL REFERENCES providers (id),
    partition INTEGER NOT NULL REFERENCES partitions (id),
    -- the first counter that it does not have
    next_counter INTEGER NOT NULL DEFAULT 0 CHECK (next_counter BETWEEN 0 AND 2147483647),
    dirty INTEGER NOT NULL DEFAULT 1,              -- newly followed or resumed: check it even if peers.cursor_seq is past it
    needs_opening INTEGER NOT NULL DEFAULT 0,      -- it lacks the parent partition's state: send `opening` with the push
    suspended_reason TEXT,                         -- why nothing is pushed: retrying cannot help; NULL: not suspended
    PRIMARY KEY (provider, partition)
) STRICT, WITHOUT ROWID;
INSERT INTO new_follows
    SELECT provider, partition, min(max(next_counter, 0), 2147483647), dirty, needs_opening, suspended_reason
    FROM follows;
DROP TABLE follows;
ALTER TABLE new_follows RENAME TO follows;
CREATE INDEX follows_of_partition ON follows (partition);
CREATE INDEX follows_dirty ON follows (provider) WHERE dirty = 1;
CREATE INDEX follows_suspended ON follows (provider) WHERE suspended_reason IS NOT NULL;

CREATE TABLE new_device_cursors (
    device INTEGER NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
    partition INTEGER NOT NULL REFERENCES partitions (id) ON DELETE CASCADE,
    next_counter INTEGER NOT NULL CHECK (next_counter BETWEEN 0 AND 2147483647),
    seen_at INTEGER NOT NULL,
    PRIMARY KEY (device, partition)
) STRICT, WITHOUT ROWID;
INSERT INTO new_device_cursors
    SELECT device, partition, min(max(next_counter, 0), 2147483647), seen_at FROM device_cursors;
DROP TABLE device_cursors;
ALTER TABLE new_device_cursors RENAME TO device_cursors;
CREATE INDEX device_cursors_of_partition ON device_cursors (partition);

CREATE INDEX recoveries_of_provider ON recoveries (provider, answered, group_ref);
