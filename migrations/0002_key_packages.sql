-- KeyPackages, the bearer tokens that allow claiming them, and the OHTTP gateway's keys and replay answers.
--
-- A device number here may outlive its device: `devices.id` is never reused. Of a bearer token, only the SHA-256 is
-- stored. Times are milliseconds since the epoch, except in ohttp_keys: its seconds are part of what is encrypted.

-- Every KeyPackage ever uploaded, until some time after its lifetime ended. So no KeyPackage is accepted or handed out
-- twice, and a Welcome finds its device by the reference of a KeyPackage that was claimed.
CREATE TABLE key_package_refs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,          -- the order of upload
    ref BLOB NOT NULL UNIQUE CHECK (length(ref) IN (32, 48, 64)),
    init_key BLOB NOT NULL UNIQUE,
    device INTEGER NOT NULL,
    version INTEGER NOT NULL,
    cipher_suite INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,                   -- the first moment after not_after
    claimed_at INTEGER,                            -- when it was last handed out
    turn INTEGER,                                  -- number of that claim: the user's device with the lowest is next
    token INTEGER                                  -- tokens.id of that claim; NULL once a Welcome arrived
) STRICT;
CREATE INDEX key_package_refs_by_expiry ON key_package_refs (expires_at);
CREATE INDEX key_package_turns ON key_package_refs (device, version, cipher_suite, turn) WHERE turn > 0;

-- The stock: KeyPackages that can be handed out. A claim deletes the row, except for a last resort KeyPackage.
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
    owner INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    digest BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
    scheme TEXT NOT NULL,
    label TEXT NOT NULL,
    issuer_device INTEGER,                         -- the device whose quota it counts against; NULL: the operator issued it
    state TEXT NOT NULL DEFAULT 'live' CHECK (state IN ('live', 'revoked', 'banned')),
    created_at INTEGER NOT NULL,
    ended_at INTEGER,                              -- when it was revoked or banned
    expires_at INTEGER,
    uses_left INTEGER CHECK (uses_left >= 0),      -- NULL: no limit
    rate_claims INTEGER CHECK (rate_claims > 0),   -- claims allowed in each rate_seconds; NULL: no limit
    rate_seconds INTEGER CHECK (rate_seconds > 0),
    rate_started_at INTEGER NOT NULL DEFAULT 0,    -- start of the current rate window
    rate_used INTEGER NOT NULL DEFAULT 0,          -- claims in the current rate window
    abuse_started_at INTEGER NOT NULL DEFAULT 0,   -- start of the abuse rule's current window
    unanswered_claims INTEGER NOT NULL DEFAULT 0,  -- claims in that window for which no Welcome has arrived
    warned_at INTEGER                              -- when the abuse rule last applied
) STRICT;
CREATE INDEX tokens_of_owner ON tokens (owner);
CREATE INDEX tokens_of_issuer ON tokens (issuer_device) WHERE issuer_device IS NOT NULL;

-- Answers to claims, repeated byte for byte while their request may be replayed. Rows expire nearly in the order in
-- which they were added, and are deleted in that order.
CREATE TABLE ohttp_replays (
    enc BLOB NOT NULL UNIQUE CHECK (length(enc) = 32),  -- of the encapsulated request (RFC 9458 section 4.3)
    digest BLOB NOT NULL CHECK (length(digest) = 32),  -- SHA-256 of the whole encapsulated request
    keep_until INTEGER NOT NULL,
    response BLOB NOT NULL                         -- sealed
) STRICT;

CREATE TABLE ohttp_keys (
    key_id INTEGER PRIMARY KEY CHECK (key_id BETWEEN 0 AND 255),
    created_at INTEGER NOT NULL,                   -- seconds
    retire_at INTEGER NOT NULL,                    -- seconds
    private_key BLOB NOT NULL                      -- in the clear, or encrypted under the operator's key file
) STRICT;
