-- A reference is accepted from the first hub that names it, unless its KeyPackage is a last resort, which is handed out
-- many times (semantics: welcomes-and-leaving).
ALTER TABLE key_package_refs ADD COLUMN reusable INTEGER NOT NULL DEFAULT 0 CHECK (reusable IN (0, 1));
UPDATE key_package_refs SET reusable = 1 WHERE id IN (SELECT id FROM key_packages WHERE last_resort = 1);
CREATE INDEX expected_welcomes_by_ref ON expected_welcomes (ref, accepted_at);
