-- Web Push: where a sleeping device is woken, and what it knew when it was heard last.
--
-- A wake-up is due if a partition that the device presented has a stamp from `next_stamp` on (see 0012_moved), or if a
-- Welcome from `next_welcome` on waits for it. No row says when a device was woken, or for which group.

CREATE TABLE push_subscriptions (
    device INTEGER PRIMARY KEY REFERENCES devices (id) ON DELETE CASCADE,
    endpoint TEXT NOT NULL,                        -- of the push service; whoever knows it and the keys can wake the device
    p256dh BLOB NOT NULL CHECK (length(p256dh) = 65),
    auth BLOB NOT NULL CHECK (length(auth) = 16),
    next_stamp INTEGER NOT NULL,                   -- moved.stamp: everything below was there when it was heard last
    next_welcome INTEGER NOT NULL,                 -- inbox.id, likewise
    is_woken INTEGER NOT NULL DEFAULT 0 CHECK (is_woken IN (0, 1))  -- 1: no push before it is heard again
) STRICT;

-- Positions that subscribed devices presented in partitions of which there is no row yet: a follower has one from the
-- first message on. They become rows of `device_cursors` then.
CREATE TABLE early_positions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    device INTEGER NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
    hub INTEGER NOT NULL REFERENCES providers (id),
    masked_key BLOB NOT NULL,
    UNIQUE (device, hub, masked_key)
) STRICT;
CREATE INDEX early_positions_by_key ON early_positions (hub, masked_key);
CREATE INDEX early_positions_of_device ON early_positions (device, id);
