-- How far a process was behind in what it hears of the others, when it last gave a sign of life.
ALTER TABLE processes ADD COLUMN lag_ms INTEGER NOT NULL DEFAULT 0;
