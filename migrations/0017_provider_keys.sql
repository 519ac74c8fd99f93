-- The provider's own MLS signature keys, and the leaves of removed devices that have to leave their groups.

CREATE TABLE provider_keys (
    public BLOB PRIMARY KEY,                       -- SignaturePublicKey
    scheme TEXT NOT NULL,
    private BLOB NOT NULL,                         -- a seed, in the clear or encrypted under the operator's key file
    made_at INTEGER NOT NULL,
    retired_at INTEGER                             -- NULL: the key that new groups list; a retired one still signs
) STRICT;
CREATE UNIQUE INDEX provider_keys_listed ON provider_keys (scheme) WHERE retired_at IS NULL;

-- SHA-256 of the signature keys in the KeyPackages that a device uploaded: its leaves in groups are known by them.
CREATE TABLE device_signature_keys (
    id INTEGER PRIMARY KEY AUTOINCREMENT,          -- the order of upload
    device INTEGER NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    UNIQUE (device, digest)
) STRICT;
CREATE INDEX device_signature_keys_by_digest ON device_signature_keys (digest);

-- Users and devices that were removed, without their names, while groups are searched for their leaves.
CREATE TABLE removals (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    user_digest BLOB NOT NULL CHECK (length(user_digest) = 32),
    device_digest BLOB CHECK (length(device_digest) = 32),  -- NULL: the user was removed, with all devices
    removed_at INTEGER,                            -- NULL until the job sees it
    packages_expire_at INTEGER NOT NULL,           -- until then somebody may add the device to a group
    next_group INTEGER,                            -- the first groups.id that was not searched yet; NULL: all were
    next_stamp INTEGER NOT NULL                    -- the first moved.stamp that was not looked at
) STRICT;

-- The keys of `device_signature_keys` that the removed device had.
CREATE TABLE removal_keys (
    removal INTEGER NOT NULL REFERENCES removals (id) ON DELETE CASCADE,
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    PRIMARY KEY (removal, digest)
) STRICT, WITHOUT ROWID;

-- A leaf of a removed device in an epoch that is the tip of a branch. When a commit opens the next epoch, the row is
-- deleted, and another one is added if the leaf is still there.
CREATE TABLE departures (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    removal INTEGER NOT NULL REFERENCES removals (id) ON DELETE CASCADE,
    group_ref INTEGER NOT NULL REFERENCES groups (id) ON DELETE CASCADE,
    partition INTEGER NOT NULL,                    -- 0: the device was seen in the group, and its leaf is not known
    leaf INTEGER NOT NULL,                         -- leaf index; -1: not known
    identity BLOB,                                 -- of the leaf's credential; the tree in `tree_nodes` has it, too
    -- 'searching': the group was not searched yet; 'due': a Remove is to be sequenced; 'proposed': it was; 'impossible'
    state TEXT NOT NULL CHECK (state IN ('searching', 'due', 'proposed', 'impossible')),
    reason TEXT,                                   -- why it is impossible, or why the last attempt failed
    message BLOB,                                  -- the signed Remove
    failures INTEGER NOT NULL DEFAULT 0,
    next_attempt_at INTEGER NOT NULL DEFAULT 0,
    UNIQUE (removal, group_ref, partition, leaf)
) STRICT;
CREATE INDEX departures_of_group ON departures (group_ref, state);
CREATE INDEX departures_due ON departures (next_attempt_at) WHERE state = 'due';
