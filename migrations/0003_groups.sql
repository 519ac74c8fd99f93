-- Groups, their partitions and messages, for both roles: hub and follower.
--
-- A group is identified by (hub, group_id), a partition by (hub, masked key). The hub of our own groups is the row of
-- this provider in `providers`. Raw partition keys are never stored. A sequenced message never changes; when it expires,
-- `body` is set to NULL and the digest remains, so that a repeat still gets the first answer.

CREATE TABLE groups (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    hub INTEGER NOT NULL REFERENCES providers (id),
    group_id BLOB NOT NULL,
    version INTEGER NOT NULL,
    cipher_suite INTEGER NOT NULL,
    creation_digest BLOB,                          -- at the hub: of the CreateGroupRequest, to recognise a repeat
    creator_device INTEGER,                        -- not a foreign key: the group outlives the device
    created_at INTEGER NOT NULL,
    -- 1: a handshake came as a PrivateMessage, so no hints are sent (semantics: following-and-delivery)
    encrypted_handshakes INTEGER NOT NULL DEFAULT 0,
    UNIQUE (hub, group_id)
) STRICT;

CREATE TABLE partitions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    group_ref INTEGER NOT NULL REFERENCES groups (id),
    hub INTEGER NOT NULL,
    masked_key BLOB NOT NULL CHECK (length(masked_key) IN (32, 48, 64)),
    parent INTEGER REFERENCES partitions (id),     -- the partition that holds the commit leading to this one
    opened_by INTEGER,                             -- messages.seq of that commit; NULL: the first partition, or detached
    detached INTEGER NOT NULL DEFAULT 0 CHECK (detached IN (0, 1)),
    epoch INTEGER,                                 -- NULL: not known (detached)
    next_counter INTEGER NOT NULL DEFAULT 0,
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
    UNIQUE (hub, masked_key)
) STRICT;
CREATE INDEX partitions_of_group ON partitions (group_ref, epoch);
CREATE INDEX partitions_by_parent ON partitions (parent);
CREATE INDEX partitions_by_last_seq ON partitions (last_seq);
-- The partitions that count against their opener's quota: branches without messages, and detached partitions.
CREATE INDEX idle_branches ON partitions (opener_provider, opener_device, group_ref)
    WHERE next_counter = 0 AND detached = 0;
CREATE INDEX detached_partitions ON partitions (opener_provider, opener_device) WHERE detached = 1;

CREATE TABLE messages (
    seq INTEGER PRIMARY KEY,                       -- one sequence for all messages; numbers are never reused
    partition INTEGER NOT NULL,
    counter INTEGER NOT NULL,
    accepted_at INTEGER NOT NULL,
    kind INTEGER NOT NULL CHECK (kind BETWEEN 1 AND 3),  -- application, proposal, commit (RFC 9420 section 6)
    digest BLOB NOT NULL CHECK (length(digest) = 32),  -- SHA-256 of the MLSMessage
    digest_key INTEGER NOT NULL,                   -- its first 8 octets: keys are random and touch an index page each, so they are short
    next_masked_key BLOB,                          -- of a commit: the partition that it leads to
    sender_provider INTEGER,                       -- the sender, for quotas; never shown to others
    sender_device INTEGER,
    body BLOB,                                     -- the MLSMessage, as received; NULL once expired
    group_info BLOB                                -- of a commit: its own GroupInfo, as received
) STRICT;
CREATE UNIQUE INDEX messages_by_counter ON messages (partition, counter);
CREATE INDEX messages_by_digest ON messages (partition, digest_key);
CREATE INDEX commits ON messages (partition, counter, next_masked_key) WHERE kind = 3;

-- Proposals that a commit in the same partition may cover. `refusal` is set for a proposal that was not sequenced: a
-- commit that covers it is refused for the same reason.
CREATE TABLE proposals (
    partition INTEGER NOT NULL,
    ref BLOB NOT NULL,
    seq INTEGER,                                   -- messages.seq; NULL: refused
    proposal_type INTEGER NOT NULL,
    refusal TEXT,                                  -- JSON: name, section and text of the rule
    PRIMARY KEY (partition, ref)
) STRICT, WITHOUT ROWID;
CREATE INDEX self_removes ON proposals (partition, seq) WHERE proposal_type = 10 AND seq IS NOT NULL;

-- Ratchet tree nodes by subtree hash (RFC 9420 section 7.8): epochs and forks share the subtrees they have in common.
CREATE TABLE tree_nodes (
    hash BLOB PRIMARY KEY,
    node BLOB NOT NULL,                            -- LeafNode or ParentNode; empty if the node is blank
    left_hash BLOB NOT NULL,                       -- empty: a leaf, or only blank nodes below
    right_hash BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- Which partitions each other provider follows, and up to where it has them. Sequencing a message writes nothing here.
CREATE TABLE follows (
    provider INTEGER NOT NULL REFERENCES providers (id),
    partition INTEGER NOT NULL REFERENCES partitions (id),
    next_counter INTEGER NOT NULL DEFAULT 0,       -- the first counter that it does not have
    dirty INTEGER NOT NULL DEFAULT 1,              -- newly followed or resumed: check it even if peers.cursor_seq is past it
    needs_opening INTEGER NOT NULL DEFAULT 0,      -- it lacks the parent partition's state: send `opening` with the push
    PRIMARY KEY (provider, partition)
) STRICT, WITHOUT ROWID;
CREATE INDEX follows_of_partition ON follows (partition);
CREATE INDEX follows_dirty ON follows (provider) WHERE dirty = 1;

CREATE TABLE peers (
    provider INTEGER PRIMARY KEY REFERENCES providers (id),
    cursor_seq INTEGER NOT NULL DEFAULT 0,         -- it has answered for everything it follows up to this messages.seq
    failures INTEGER NOT NULL DEFAULT 0,
    next_attempt_at INTEGER NOT NULL DEFAULT 0
) STRICT;

-- Welcomes: the body once, and a row for each provider (outgoing_welcomes) or device (inbox) that it goes to.
CREATE TABLE welcomes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    digest BLOB NOT NULL UNIQUE,
    body BLOB NOT NULL,                            -- MLSMessage
    stored_at INTEGER NOT NULL
) STRICT;

CREATE TABLE outgoing_welcomes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    welcome INTEGER NOT NULL REFERENCES welcomes (id),
    partition INTEGER NOT NULL REFERENCES partitions (id),  -- the partition that the Welcome's commit leads to
    provider INTEGER NOT NULL REFERENCES providers (id),
    refs BLOB NOT NULL,                            -- KeyPackageRef refs<V>
    state TEXT NOT NULL CHECK (state IN ('held', 'due', 'offered', 'delivered', 'refused', 'cancelled', 'expired')),
    outcome TEXT,                                  -- for the operator: why it was refused, or the last failure
    failures INTEGER NOT NULL DEFAULT 0,
    next_attempt_at INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX outgoing_welcomes_due ON outgoing_welcomes (next_attempt_at) WHERE state IN ('due', 'offered');
CREATE INDEX outgoing_welcomes_of_partition ON outgoing_welcomes (partition);

-- KeyPackageRefs that we accepted in welcome/init; a Welcome for them is expected from that hub.
CREATE TABLE expected_welcomes (
    hub INTEGER NOT NULL REFERENCES providers (id),
    ref BLOB NOT NULL,
    device INTEGER NOT NULL,
    accepted_at INTEGER NOT NULL,
    arrived_at INTEGER,                            -- when its Welcome arrived
    matched_group INTEGER,                         -- the group whose pushes this reference admits: one for each reference
    PRIMARY KEY (hub, ref)
) STRICT, WITHOUT ROWID;

CREATE TABLE inbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    device INTEGER NOT NULL,
    welcome INTEGER NOT NULL REFERENCES welcomes (id),
    hub INTEGER NOT NULL REFERENCES providers (id),
    arrived_at INTEGER NOT NULL,
    acknowledged_at INTEGER,                       -- the row stays for a while, so that a repeat is not delivered again
    UNIQUE (device, welcome)
) STRICT;
CREATE INDEX inbox_waiting ON inbox (device, id) WHERE acknowledged_at IS NULL;

-- As follower: which of our devices are in which group, as far as we can know.
CREATE TABLE participations (
    group_ref INTEGER NOT NULL REFERENCES groups (id),
    device INTEGER NOT NULL,
    joined_at INTEGER NOT NULL,
    left_at INTEGER,
    PRIMARY KEY (group_ref, device)
) STRICT, WITHOUT ROWID;
