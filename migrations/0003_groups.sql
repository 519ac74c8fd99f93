-- Groups, their partitions and messages: as hub and as follower alike.
--
-- A group is keyed by (hub, group_id), a partition by (hub, masked key). `providers.id` 0 never occurs: the hub of
-- our own groups is this provider's own row. Raw partition keys are never stored. A message is immutable once
-- sequenced; expiry empties `body` and leaves the digest, so that a repeat still gets its first answer.

CREATE TABLE groups (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    hub INTEGER NOT NULL REFERENCES providers (id),
    group_id BLOB NOT NULL,
    version INTEGER NOT NULL,
    cipher_suite INTEGER NOT NULL,
    creation_digest BLOB,                    -- of the CreateGroupRequest, at the hub: a repeat is recognised
    creator_device INTEGER,                  -- no reference: the group outlives the device
    created_at INTEGER NOT NULL,
    encrypted_handshakes INTEGER NOT NULL DEFAULT 0,   -- a PrivateMessage handshake was seen: no hints (semantics: following-and-delivery)
    UNIQUE (hub, group_id)
) STRICT;

CREATE TABLE partitions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    group_ref INTEGER NOT NULL REFERENCES groups (id),
    hub INTEGER NOT NULL,
    masked_key BLOB NOT NULL CHECK (length(masked_key) IN (32, 48, 64)),
    parent INTEGER REFERENCES partitions (id),     -- the partition whose commit leads here
    opened_by INTEGER,                             -- messages.seq of that commit; NULL: creation, or detached
    detached INTEGER NOT NULL DEFAULT 0 CHECK (detached IN (0, 1)),
    epoch INTEGER,                                 -- NULL: not known (detached)
    next_counter INTEGER NOT NULL DEFAULT 0,
    last_seq INTEGER NOT NULL DEFAULT 0,           -- messages.seq of its newest message
    knowledge TEXT NOT NULL DEFAULT 'unknown' CHECK (knowledge IN ('derived', 'claimed', 'unknown')),
    root_hash BLOB,                                -- of the tree in tree_nodes; NULL when unknown
    group_context BLOB,
    confirmation_tag BLOB,
    reinitialized INTEGER NOT NULL DEFAULT 0,      -- a ReInit was committed: nothing more may be sent
    group_info BLOB,                               -- MLSMessage, byte for byte as given
    terminated_by INTEGER,                         -- the partition whose termination ended this one too, maybe itself
    terminated_at INTEGER,                         -- on that partition only
    terminated_why TEXT,
    held_welcomes INTEGER NOT NULL DEFAULT 0,      -- Welcomes of its commit that wait for a message here (semantics: welcomes-and-leaving)
    opener_provider INTEGER,                       -- whose quota it counts against
    opener_device INTEGER,
    opened_at INTEGER NOT NULL,
    expired_at INTEGER,                            -- retention emptied it: key, epoch, parent and digests remain
    UNIQUE (hub, masked_key)
) STRICT;
CREATE INDEX partitions_of_group ON partitions (group_ref, epoch);
CREATE INDEX partitions_by_parent ON partitions (parent);
CREATE INDEX partitions_by_last_seq ON partitions (last_seq);
-- What counts against its opener's quota: branches that carry nothing yet, and detached partitions.
CREATE INDEX idle_branches ON partitions (opener_provider, opener_device, group_ref)
    WHERE next_counter = 0 AND detached = 0;
CREATE INDEX detached_partitions ON partitions (opener_provider, opener_device) WHERE detached = 1;

CREATE TABLE messages (
    seq INTEGER PRIMARY KEY,                       -- the one global sequence; never reused (see settings)
    partition INTEGER NOT NULL,
    counter INTEGER NOT NULL,
    accepted_at INTEGER NOT NULL,
    kind INTEGER NOT NULL CHECK (kind BETWEEN 1 AND 3),  -- application, proposal, commit (RFC 9420 section 6)
    digest BLOB NOT NULL CHECK (length(digest) = 32),  -- SHA-256 of the MLSMessage
    digest_key INTEGER NOT NULL,                   -- its first 8 octets: random keys cost an index page each, so short
    next_masked_key BLOB,                          -- commits
    sender_provider INTEGER,                       -- who brought it, for quotas; never shown to others
    sender_device INTEGER,
    body BLOB,                                     -- the MLSMessage as received; NULL once expired
    group_info BLOB                                -- the commit's own GroupInfo, as received
) STRICT;
CREATE UNIQUE INDEX messages_by_counter ON messages (partition, counter);
CREATE INDEX messages_by_digest ON messages (partition, digest_key);
CREATE INDEX commits ON messages (partition, counter, next_masked_key) WHERE kind = 3;

-- Proposals that a commit in the same partition may cover. `refusal` is set for one that was not sequenced: a commit
-- that covers it is refused for the same reason.
CREATE TABLE proposals (
    partition INTEGER NOT NULL,
    ref BLOB NOT NULL,
    seq INTEGER,                                   -- messages.seq; NULL: refused
    proposal_type INTEGER NOT NULL,
    refusal TEXT,                                  -- JSON: the rule, its section, and what it said
    PRIMARY KEY (partition, ref)
) STRICT, WITHOUT ROWID;
CREATE INDEX self_removes ON proposals (partition, seq) WHERE proposal_type = 10 AND seq IS NOT NULL;

-- Tree nodes under their subtree hash (RFC 9420 section 7.8): epochs and forks share what they have in common.
CREATE TABLE tree_nodes (
    hash BLOB PRIMARY KEY,
    node BLOB NOT NULL,                            -- LeafNode or ParentNode; empty where blank
    left_hash BLOB NOT NULL,                       -- empty: a leaf, or nothing but blanks below
    right_hash BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- What each other provider follows, and how far it has come. Nothing is written here when a message is sequenced.
CREATE TABLE follows (
    provider INTEGER NOT NULL REFERENCES providers (id),
    partition INTEGER NOT NULL REFERENCES partitions (id),
    next_counter INTEGER NOT NULL DEFAULT 0,       -- what to send next
    dirty INTEGER NOT NULL DEFAULT 1,              -- look here whatever the cursor says (new, or resumed)
    needs_opening INTEGER NOT NULL DEFAULT 0,      -- it has no parent state: send `opening` along
    PRIMARY KEY (provider, partition)
) STRICT, WITHOUT ROWID;
CREATE INDEX follows_of_partition ON follows (partition);
CREATE INDEX follows_dirty ON follows (provider) WHERE dirty = 1;

CREATE TABLE peers (
    provider INTEGER PRIMARY KEY REFERENCES providers (id),
    cursor_seq INTEGER NOT NULL DEFAULT 0,         -- all it follows up to here has been answered
    failures INTEGER NOT NULL DEFAULT 0,
    next_attempt_at INTEGER NOT NULL DEFAULT 0
) STRICT;

-- Welcomes: the body once, a row for each provider (outgoing) or device (incoming).
CREATE TABLE welcomes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    digest BLOB NOT NULL UNIQUE,
    body BLOB NOT NULL,                            -- MLSMessage
    stored_at INTEGER NOT NULL
) STRICT;

CREATE TABLE welcomes_out (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    welcome INTEGER NOT NULL REFERENCES welcomes (id),
    partition INTEGER NOT NULL REFERENCES partitions (id),  -- that the commit opens
    provider INTEGER NOT NULL REFERENCES providers (id),
    refs BLOB NOT NULL,                            -- KeyPackageRef refs<V>
    state TEXT NOT NULL CHECK (state IN ('held', 'due', 'offered', 'delivered', 'refused', 'cancelled', 'expired')),
    outcome TEXT,                                  -- for the operator: why refused, last failure
    failures INTEGER NOT NULL DEFAULT 0,
    next_attempt_at INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX welcomes_out_due ON welcomes_out (next_attempt_at) WHERE state IN ('due', 'offered');
CREATE INDEX welcomes_out_of_partition ON welcomes_out (partition);

-- References that we said yes to in welcome/init, until their Welcome came.
CREATE TABLE welcomes_expected (
    hub INTEGER NOT NULL REFERENCES providers (id),
    ref BLOB NOT NULL,
    device INTEGER NOT NULL,
    accepted_at INTEGER NOT NULL,
    arrived_at INTEGER,                            -- its Welcome came
    matched_group INTEGER,                         -- the group that pushes then began with: one for each reference
    PRIMARY KEY (hub, ref)
) STRICT, WITHOUT ROWID;

CREATE TABLE inbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    device INTEGER NOT NULL,
    welcome INTEGER NOT NULL REFERENCES welcomes (id),
    hub INTEGER NOT NULL REFERENCES providers (id),
    arrived_at INTEGER NOT NULL,
    acknowledged_at INTEGER,                       -- kept a while, so that a repeat does not bring it back
    UNIQUE (device, welcome)
) STRICT;
CREATE INDEX inbox_waiting ON inbox (device, id) WHERE acknowledged_at IS NULL;

-- As follower: which of our devices take part in which group, as far as we can know.
CREATE TABLE participations (
    group_ref INTEGER NOT NULL REFERENCES groups (id),
    device INTEGER NOT NULL,
    joined_at INTEGER NOT NULL,
    left_at INTEGER,
    PRIMARY KEY (group_ref, device)
) STRICT, WITHOUT ROWID;
