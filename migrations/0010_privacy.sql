-- Privacy at rest (docs/privacy.md): nothing is kept of a person after it has served, and times are coarse, so that
-- no two tables can be joined by the moment of a claim, a fetch or a Welcome. An hour has 3,600,000 milliseconds.

-- Who sent a message. For a commit, the partition that it leads to says it too, until that partition expires.
UPDATE partitions SET
    opener_provider = (SELECT sender_provider FROM messages WHERE seq = opened_by),
    opener_device = (SELECT sender_device FROM messages WHERE seq = opened_by)
    WHERE parent IS NOT NULL
        AND EXISTS (SELECT 1 FROM messages WHERE seq = opened_by AND sender_provider IS NOT NULL);
-- 0: not known any more; NULL: it came back after a restore.
UPDATE partitions SET opener_provider = 0, opener_device = NULL
    WHERE expired_at IS NOT NULL AND opener_provider IS NOT NULL;
ALTER TABLE messages DROP COLUMN sender_provider;
ALTER TABLE messages DROP COLUMN sender_device;

-- 1: a device of ours was in the group and then removed.
ALTER TABLE groups ADD COLUMN departed INTEGER NOT NULL DEFAULT 0 CHECK (departed IN (0, 1));
UPDATE groups SET departed = 1 WHERE id IN
    (SELECT group_ref FROM participations WHERE device NOT IN (SELECT id FROM devices));
DELETE FROM participations WHERE device NOT IN (SELECT id FROM devices);
-- A device that read from a group again after it had left is in the group.
DELETE FROM participations WHERE left_at IS NOT NULL AND EXISTS
    (SELECT 1 FROM device_cursors c JOIN partitions p ON p.id = c.partition
        WHERE c.device = participations.device AND p.group_ref = participations.group_ref
            AND c.seen_at > participations.left_at);
UPDATE participations SET joined_at = joined_at / 3600000 * 3600000;
UPDATE device_cursors SET seen_at = seen_at / 3600000 * 3600000;

-- What names a device that was removed.
UPDATE groups SET creator_device = NULL WHERE creator_device NOT IN (SELECT id FROM devices);
UPDATE partitions SET opener_device = NULL WHERE opener_device NOT IN (SELECT id FROM devices);
UPDATE outgoing_welcomes SET sender = 0 WHERE sender > 0
    AND (state NOT IN ('held', 'due', 'offered') OR sender NOT IN (SELECT id FROM devices));
-- 0: a device that was removed; the row is kept so that its KeyPackage is not accepted again.
UPDATE key_package_refs SET device = 0, turn = NULL, token = NULL WHERE device NOT IN (SELECT id FROM devices);
DELETE FROM restored_readers WHERE device NOT IN (SELECT id FROM devices);
UPDATE tokens SET issuer_device = NULL WHERE issuer_device NOT IN (SELECT id FROM devices);
-- 0: a device that was removed.
UPDATE reports SET reporter_device = 0, digest = randomblob(32) WHERE reporter_device NOT IN (SELECT id FROM devices);
DELETE FROM inbox WHERE device NOT IN (SELECT id FROM devices);
DELETE FROM expected_welcomes WHERE device NOT IN (SELECT id FROM devices);

-- Claims: the hour while their token counts them, and 0 afterwards; the turn has their order.
UPDATE key_package_refs SET claimed_at = CASE WHEN token IS NULL THEN 0 ELSE claimed_at / 3600000 * 3600000 END
    WHERE claimed_at IS NOT NULL;
UPDATE tokens SET rate_started_at = 0, rate_used = 0 WHERE rate_seconds IS NULL;
UPDATE tokens SET rate_started_at = rate_started_at / (rate_seconds * 1000) * (rate_seconds * 1000)
    WHERE rate_seconds IS NOT NULL;
UPDATE tokens SET abuse_started_at = CASE WHEN unanswered_claims = 0 THEN 0 ELSE abuse_started_at / 3600000 * 3600000 END,
    warned_at = warned_at / 3600000 * 3600000, ended_at = ended_at / 3600000 * 3600000;

-- Welcomes: an empty body is one that every recipient has acknowledged.
ALTER TABLE expected_welcomes DROP COLUMN arrived_at;
UPDATE expected_welcomes SET accepted_at = accepted_at / 3600000 * 3600000;
UPDATE inbox SET arrived_at = arrived_at / 3600000 * 3600000, acknowledged_at = acknowledged_at / 3600000 * 3600000;
UPDATE welcomes SET stored_at = stored_at / 3600000 * 3600000;
DELETE FROM welcomes WHERE NOT EXISTS (SELECT 1 FROM outgoing_welcomes o WHERE o.welcome = welcomes.id)
    AND NOT EXISTS (SELECT 1 FROM inbox i WHERE i.welcome = welcomes.id);
UPDATE welcomes SET body = x'' WHERE NOT EXISTS (SELECT 1 FROM outgoing_welcomes o WHERE o.welcome = welcomes.id)
    AND NOT EXISTS (SELECT 1 FROM inbox i WHERE i.welcome = welcomes.id AND i.acknowledged_at IS NULL);

-- Rates: a full bucket has no row. The server saves what it needs again.
DELETE FROM rate_buckets WHERE rate IN ('device_fetches_per_minute', 'user_fetches_per_minute');
UPDATE rate_buckets SET updated_at = updated_at / 3600000 * 3600000, tokens_left = CAST(tokens_left AS INTEGER);

-- For what is deleted with a device, or some time after it left a group.
CREATE INDEX participations_left ON participations (left_at) WHERE left_at IS NOT NULL;
CREATE INDEX partitions_of_opener ON partitions (opener_device) WHERE opener_device IS NOT NULL;
CREATE INDEX key_package_refs_of_device ON key_package_refs (device);
CREATE INDEX expected_welcomes_of_device ON expected_welcomes (device);
