-- What operators did, one row for each command that writes. Entries are only added: an entry is never changed, and
-- only those older than `[retention] audit_days` are deleted.
--
-- Of a user or a device of ours, an entry has the number, which is never given out again and says nothing once the user
-- or the device is removed. Secrets and notes are left out.

CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,                           -- milliseconds since the epoch
    actor TEXT NOT NULL,                           -- 'shell UID', 'socket UID' or 'console SESSION'
    command TEXT NOT NULL,                         -- such as 'user add'
    arguments TEXT NOT NULL                        -- a JSON object
) STRICT;
CREATE INDEX audit_by_time ON audit (at);

-- One row: entries before this time may be deleted. Retention sets it in the transaction in which it deletes them.
CREATE TABLE audit_kept (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    since INTEGER NOT NULL
) STRICT;
INSERT INTO audit_kept (id, since) VALUES (1, 0);

CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN
    SELECT RAISE(ABORT, 'an entry of the audit table is never changed');
END;
CREATE TRIGGER audit_is_not_shortened BEFORE DELETE ON audit
    WHEN OLD.at >= (SELECT since FROM audit_kept)
BEGIN
    SELECT RAISE(ABORT, 'this entry of the audit table is not old enough to be deleted');
END;
