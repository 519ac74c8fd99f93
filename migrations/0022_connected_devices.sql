-- Devices with a push subscription that are connected to a process: other processes do not wake them. In SQLite, where
-- one process knows this by itself, the table stays empty.
CREATE TABLE connected_devices (
    device INTEGER NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
    process TEXT NOT NULL,                         -- its name in `processes`
    PRIMARY KEY (device, process)
) STRICT;
