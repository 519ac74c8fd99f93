-- Accounts: suspended users, names that are compared without case, user ids that nobody gets again, and when a device
-- was last seen. Also which other providers the operator allows besides the configuration, and deleted groups.

ALTER TABLE users ADD COLUMN suspended_at INTEGER;  -- NULL: not suspended
-- SHA-256 of the user id without case and percent-encoding. NULL: computed when the next user is added.
ALTER TABLE users ADD COLUMN name_digest BLOB CHECK (length(name_digest) = 32);
CREATE INDEX users_by_name_digest ON users (name_digest);

-- The start of the day (UTC) on which a request or a stream of the device was last seen, in milliseconds.
ALTER TABLE devices ADD COLUMN seen_on INTEGER;

-- `users.name_digest` of the users that were removed.
CREATE TABLE reserved_names (
    digest BLOB PRIMARY KEY CHECK (length(digest) = 32)
) STRICT, WITHOUT ROWID;

-- What the operator decided on other providers while the server ran; it goes before `[federation] allow`.
CREATE TABLE federation_rules (
    domain TEXT PRIMARY KEY,
    allowed INTEGER NOT NULL CHECK (allowed IN (0, 1)),
    changed_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- A deleted group has no id and its partitions have no keys any more: both were replaced by random octets. The sweep
-- deletes its messages.
ALTER TABLE groups ADD COLUMN deleted_at INTEGER;
CREATE INDEX deleted_groups ON groups (deleted_at) WHERE deleted_at IS NOT NULL;
-- SHA-256 of the ids of groups that were deleted here as hub: such a group cannot be created again.
CREATE TABLE reserved_groups (
    digest BLOB PRIMARY KEY CHECK (length(digest) = 32)
) STRICT, WITHOUT ROWID;
