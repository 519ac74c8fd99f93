-- Which partitions have news for their followers, found by what moved and not by what is followed.
--
-- A partition gets a new stamp whenever something in it may be due to a follower: messages were appended, a provider
-- follows it or resumes, a commit attaches it. Stamps are numbers of one sequence, or in another database the id of the
-- transaction. `peers.next_stamp` is the first stamp that was not looked at for a follower, so a push is due where
-- `stamp >= next_stamp` and the follower's counter is behind. That replaces `follows.dirty`.

CREATE TABLE moved (
    partition INTEGER PRIMARY KEY,                 -- 0: holds the newest stamp of rows that were deleted
    stamp INTEGER NOT NULL
) STRICT;
-- Partitions that a follower does not have completely get stamps above every cursor, in the order of their messages.
INSERT INTO moved
    SELECT id, last_seq + CASE WHEN EXISTS
        (SELECT 1 FROM follows f WHERE f.partition = p.id AND f.next_counter < p.next_counter)
        THEN (SELECT coalesce(max(seq), 0) + 1 FROM messages) ELSE 0 END
    FROM partitions p;
CREATE INDEX moved_by_stamp ON moved (stamp);
ALTER TABLE peers RENAME COLUMN cursor_seq TO next_stamp;
UPDATE peers SET next_stamp = next_stamp + 1;

DROP INDEX follows_dirty;
ALTER TABLE follows DROP COLUMN dirty;
DROP INDEX follows_suspended;
CREATE INDEX follows_suspended ON follows (provider, suspended_reason) WHERE suspended_reason IS NOT NULL;

-- Of `partitions_by_last_seq`, only this part is still read.
DROP INDEX partitions_by_last_seq;
CREATE INDEX empty_partitions ON partitions (group_ref) WHERE last_seq = 0;
-- The open branches of a hub, in the order of the partitions that they fork from.
CREATE INDEX open_branches ON partitions (hub, parent, opened_at) WHERE terminated_by IS NULL AND detached = 0;

CREATE INDEX participations_of_device ON participations (device);
