-- The processes that may have heard of a device with a push subscription, and have not stored that yet. A process that
-- ends deletes its row when everything is stored. So the row of a process that has ended says that it has crashed. In
-- SQLite, where one process stores what it hears before it answers, the table stays empty.
CREATE TABLE hearing_processes (
    process TEXT PRIMARY KEY                       -- its name in `processes`
) STRICT, WITHOUT ROWID;
