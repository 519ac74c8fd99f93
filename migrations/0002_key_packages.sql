-- KeyPackages, the tokens that unlock them, and what the OHTTP gateway must remember.
--
-- Device numbers here may outlive their device: `devices.id` is never given twice. Bearer tokens are stored as SHA-256
-- only. Times are milliseconds since the epoch, but for ohttp_keys, whose seconds are part of what is encrypted.

-- Every KeyPackage that was ever uploaded, until its lifetime is over and for a while longer: nothing is taken or
-- handed out twice, and a claimed reference keeps its way to the device.
CREATE TABLE key_package_refs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,          -- the order of upload
    ref BLOB NOT NULL UNIQUE CHECK (length(ref) IN (32, 48, 64)),
    init_key BLOB NOT NULL UNIQUE,
    device INTEGER NOT NULL,
    version INTEGER NOT NULL,
    cipher_suite INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,                   -- the first moment after not_after
    claimed_at INTEGER,                            -- last handed out
    turn INTEGER,                                  -- likewise, in order: of a user's devices the lowest is next
    token INTEGER                                  -- that it was last handed out for, until a Welcome came
) STRICT;
CREATE INDEX key_package_refs_by_expiry ON key_package_refs (expires_at);
CREATE INDEX key_package_turns ON key_package_refs (device, version, cipher_suite, turn) WHERE turn > 0;

-- The stock: what can be handed out. An ordinary one leaves with its claim.
CREATE TABLE key_packages (
    id INTEGER PRIMARY KEY,                        -- key_package_refs.id
    device INTEGER NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
    version INTEGER NOT NULL,
    cipher_suite INTEGER NOT NULL,
    last_resort INTEGER NOT NULL CHECK (last_resort IN (0, 1)),
    expires_at INTEGER NOT NULL,
    body BLOB NOT NULL                             -- KeyPackage, as received
) STRICT;
CREATE INDEX key_packages_next ON key_packages (device, version, cipher_suite, last_resort);

CREATE TABLE tokens (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    user INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    digest BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
    scheme TEXT NOT NULL,
    label TEXT NOT NULL,
    device INTEGER,                                -- that issued it, for its quota; NULL: the operator
    state TEXT NOT NULL DEFAULT 'live' CHECK (state IN ('live', 'revoked', 'banned')),
    created_at INTEGER NOT NULL,
    ended_at INTEGER,                              -- revoked or banned
    expires_at INTEGER,
    uses_left INTEGER CHECK (uses_left >= 0),      -- NULL: no limit
    rate_claims INTEGER CHECK (rate_claims > 0),   -- NULL: no limit; else so many in each rate_seconds
    rate_seconds INTEGER CHECK (rate_seconds > 0),
    rate_started_at INTEGER NOT NULL DEFAULT 0,    -- of the current window, and claims in it
    rate_used INTEGER NOT NULL DEFAULT 0,
    abuse_started_at INTEGER NOT NULL DEFAULT 0,   -- likewise, for claims that no Welcome has answered
    abuse_open INTEGER NOT NULL DEFAULT 0,
    warned_at INTEGER                              -- when the abuse rule was last met
) STRICT;
CREATE INDEX tokens_of_user ON tokens (user);
CREATE INDEX tokens_of_device ON tokens (device) WHERE device IS NOT NULL;

-- Answers that consumed something, to be given again byte for byte while their request may be replayed.
-- They end nearly in the order of their rows, and are forgotten in it.
CREATE TABLE ohttp_replays (
    enc BLOB NOT NULL UNIQUE CHECK (length(enc) = 32),
    digest BLOB NOT NULL CHECK (length(digest) = 32),  -- SHA-256 of the whole encapsulated request
    keep_until INTEGER NOT NULL,
    response BLOB NOT NULL                         -- sealed
) STRICT;

CREATE TABLE ohttp_keys (
    key_id INTEGER PRIMARY KEY CHECK (key_id BETWEEN 0 AND 255),
    created_at INTEGER NOT NULL,                   -- seconds
    retire_at INTEGER NOT NULL,                    -- seconds
    private_key BLOB NOT NULL                      -- as it is, or under the operator's key file
) STRICT;
