SET LOCAL lock_timeout = '5s';

-- The defaults are constants and there are no checks, so no row is written or read.
ALTER TABLE scheduler.tasks
    ADD COLUMN max_attempts        integer NOT NULL DEFAULT 1,
    ADD COLUMN backoff_seconds     integer NOT NULL DEFAULT 5,
    ADD COLUMN max_backoff_seconds integer NOT NULL DEFAULT 300,
    -- Null: after every failure that another attempt may mend.
    ADD COLUMN retry_exit_codes    integer[];

-- What a run's receipt needs besides. due_at is its task's when it was dispatched; closed_at is when its end was
-- taken down here, by this database's clock.
ALTER TABLE scheduler.runs
    ADD COLUMN due_at         timestamptz,
    ADD COLUMN closed_at      timestamptz,
    ADD COLUMN pulled_seconds double precision,
    ADD COLUMN cpu_seconds    double precision;
