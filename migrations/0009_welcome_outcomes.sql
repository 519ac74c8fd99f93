-- What became of each Welcome, for the member who sent it (semantics: welcomes-and-leaving).

-- References whose Welcome is not sent because this hub may not contact their providers: one row for each Welcome. They
-- have no rows in outgoing_welcomes, so that made-up names cost nothing.
CREATE TABLE unsendable_welcomes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    partition INTEGER NOT NULL REFERENCES partitions (id),  -- the partition that the Welcome's commit leads to
    refs BLOB NOT NULL,                            -- KeyPackageRef refs<V>
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX unsendable_welcomes_of_partition ON unsendable_welcomes (partition);

-- Reasons are codes from now on.
UPDATE outgoing_welcomes SET outcome = 'not-accepted' WHERE outcome = 'none of its KeyPackages was accepted';

-- Held Welcomes of branches that went on with a commit were never released.
UPDATE outgoing_welcomes SET state = 'due' WHERE state = 'held' AND partition IN
    (SELECT parent.id FROM partitions child JOIN partitions parent ON parent.id = child.parent
        WHERE parent.terminated_by IS NULL);
UPDATE partitions SET held_welcomes = 0 WHERE held_welcomes > 0 AND NOT EXISTS
    (SELECT 1 FROM outgoing_welcomes w WHERE w.partition = partitions.id AND w.state = 'held');
