-- What a restore leaves behind (semantics: restore).

-- Of a partition that we host: its next counter when it was restored. The counters from there on were given out before
-- the restore, for messages that are lost. NULL: none was.
ALTER TABLE partitions ADD COLUMN restored_end INTEGER CHECK (restored_end BETWEEN 0 AND 2147483647);

-- The devices that have read a partition from its `restored_end` or earlier since then. A later position of any other
-- device is one of before the restore. A device number here may outlive its device.
CREATE TABLE restored_readers (
    partition INTEGER NOT NULL REFERENCES partitions (id) ON DELETE CASCADE,
    device INTEGER NOT NULL,
    PRIMARY KEY (partition, device)
) STRICT, WITHOUT ROWID;

-- 1: the group is held until the provider answers. 0: only until it was asked once; it may never have had a message.
ALTER TABLE recoveries ADD COLUMN must_answer INTEGER NOT NULL DEFAULT 1 CHECK (must_answer IN (0, 1));

-- To send Welcomes again to a provider that was restored.
CREATE INDEX outgoing_welcomes_delivered ON outgoing_welcomes (provider, id) WHERE state = 'delivered';
