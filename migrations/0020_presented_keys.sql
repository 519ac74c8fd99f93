-- Presented keys, which were kept in memory: a restart forgot them, and another process on the same database did not know
-- them.

-- 1: the follower presented the key while it lacked messages. A push that is on its way may be answered by what the
-- follower knew before, so an answer that it no longer follows does not end the follow. Its next answer sets it to 0.
ALTER TABLE follows ADD COLUMN presented INTEGER NOT NULL DEFAULT 0;

-- Partitions that our devices requested from other hubs and that are unknown here: that hub's pushes of them are
-- accepted. The row is deleted when the partition is added.
CREATE TABLE requested_partitions (
    id INTEGER PRIMARY KEY,                        -- the order of requests: the oldest of a device are deleted first
    hub INTEGER NOT NULL REFERENCES providers (id),
    sha256 BLOB NOT NULL CHECK (length(sha256) = 32),  -- the masks of the key
    sha384 BLOB NOT NULL CHECK (length(sha384) = 48),
    sha512 BLOB NOT NULL CHECK (length(sha512) = 64),
    device INTEGER NOT NULL,                       -- the one that requested it last
    linear INTEGER NOT NULL DEFAULT 0,             -- 1: the hub said that the partition is of a linear group
    UNIQUE (sha256, hub),
    UNIQUE (sha384, hub),
    UNIQUE (sha512, hub)
) STRICT;
CREATE INDEX requested_partitions_of_device ON requested_partitions (device, id);

-- Whose participations end.
CREATE INDEX suspended_users ON users (id) WHERE suspended_at IS NOT NULL;
