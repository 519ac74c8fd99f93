-- Whether a device was heard while the push to it was in flight, also if another process heard it. The number is random,
-- so it does not say how often a device was heard.
ALTER TABLE push_subscriptions ADD COLUMN last_contact INTEGER NOT NULL DEFAULT 0;  -- new whenever the device is heard
