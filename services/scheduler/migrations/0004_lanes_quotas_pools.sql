SET LOCAL lock_timeout = '5s';

-- All defaults are constants, so no row is written.
ALTER TABLE scheduler.tasks
    ADD COLUMN pool text NOT NULL DEFAULT 'default',
    -- At most so many tasks of this key of this user run at a time; without a group '' and 0.
    ADD COLUMN concurrency_key text NOT NULL DEFAULT '',
    ADD COLUMN concurrency_limit integer NOT NULL DEFAULT 0
        CONSTRAINT tasks_concurrency CHECK (
            concurrency_limit BETWEEN 0 AND 1000 AND (concurrency_key = '') = (concurrency_limit = 0)),
    ADD COLUMN queue_ttl_seconds integer,
    -- When it fails if no executor has taken it by then; from the first due time, whatever becomes of due_at.
    ADD COLUMN expires_at timestamptz;
ALTER TABLE scheduler.runs ADD COLUMN pool text NOT NULL DEFAULT 'default';
ALTER TABLE scheduler.executors ADD COLUMN pools text[] NOT NULL DEFAULT '{default}';
-- Whether its holder is pulling the image.
ALTER TABLE scheduler.leases ADD COLUMN pulling boolean NOT NULL DEFAULT false;

-- A lane's tasks in the order in which they go.
CREATE INDEX tasks_in_lane ON scheduler.tasks
    (user_id, pool, priority, concurrency_key, concurrency_limit, due_at) WHERE status = 'pending';
-- What counts against quotas, groups and shares. Never more than the executors have slots, and a few.
CREATE INDEX tasks_live ON scheduler.tasks (user_id, pool, concurrency_key) WHERE status IN ('queued', 'running');
CREATE INDEX tasks_expiring ON scheduler.tasks (expires_at)
    WHERE expires_at IS NOT NULL AND status IN ('pending', 'queued');

-- A lane: the pending tasks of one user that differ in nothing that dispatch decides by, with its earliest due time
-- or an earlier one. Only dispatch writes it, so whoever creates tasks never waits for it, nor it for them.
CREATE TABLE scheduler.lanes (
    pool              text NOT NULL,
    priority          smallint NOT NULL,
    user_id           uuid NOT NULL,
    concurrency_key   text NOT NULL,
    concurrency_limit integer NOT NULL,
    due_at            timestamptz NOT NULL,
    PRIMARY KEY (user_id, pool, priority, concurrency_key, concurrency_limit)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX lanes_of_pool ON scheduler.lanes (pool, priority, due_at);
CREATE INDEX lanes_of_user ON scheduler.lanes (user_id, pool, priority DESC, due_at);
-- By an expression, so that the planner takes it for `look_ahead` and nothing else.
CREATE INDEX lanes_due ON scheduler.lanes ((due_at AT TIME ZONE 'UTC'));

-- Lanes in which something has become pending since dispatch looked last. Dispatch takes what is due out of it.
CREATE TABLE scheduler.arrivals (
    pool              text NOT NULL,
    priority          smallint NOT NULL,
    user_id           uuid NOT NULL,
    concurrency_key   text NOT NULL,
    concurrency_limit integer NOT NULL,
    due_at            timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000);
CREATE INDEX arrivals_due ON scheduler.arrivals (due_at);

-- Triggers, so that no way into pending can forget it.
CREATE FUNCTION scheduler.note_arrivals() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO scheduler.arrivals (pool, priority, user_id, concurrency_key, concurrency_limit, due_at)
    SELECT pool, priority, user_id, concurrency_key, concurrency_limit, min(due_at)
      FROM created
     WHERE status = 'pending'
     GROUP BY pool, priority, user_id, concurrency_key, concurrency_limit;
    RETURN NULL;
END $$;
CREATE TRIGGER tasks_arrive AFTER INSERT ON scheduler.tasks
    REFERENCING NEW TABLE AS created FOR EACH STATEMENT EXECUTE FUNCTION scheduler.note_arrivals();

CREATE FUNCTION scheduler.note_return() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO scheduler.arrivals (pool, priority, user_id, concurrency_key, concurrency_limit, due_at)
    VALUES (NEW.pool, NEW.priority, NEW.user_id, NEW.concurrency_key, NEW.concurrency_limit, NEW.due_at);
    RETURN NULL;
END $$;
CREATE TRIGGER tasks_return AFTER UPDATE ON scheduler.tasks FOR EACH ROW
    WHEN (NEW.status = 'pending' AND (OLD.status <> 'pending' OR NEW.due_at < OLD.due_at))
    EXECUTE FUNCTION scheduler.note_return();

INSERT INTO scheduler.lanes (pool, priority, user_id, concurrency_key, concurrency_limit, due_at)
SELECT pool, priority, user_id, concurrency_key, concurrency_limit, min(due_at)
  FROM scheduler.tasks
 WHERE status = 'pending'
 GROUP BY pool, priority, user_id, concurrency_key, concurrency_limit;

-- What the admin set for a user; NULL is the system's default.
CREATE TABLE scheduler.quotas (
    user_id            uuid PRIMARY KEY,
    running            integer CONSTRAINT quotas_running CHECK (running >= 0),
    queued             integer CONSTRAINT quotas_queued CHECK (queued >= 0),
    created_per_minute integer CONSTRAINT quotas_created CHECK (created_per_minute >= 0)
);
-- How many tasks a user created in which second, for the last minute, where that is limited.
CREATE TABLE scheduler.creations (
    user_id uuid NOT NULL,
    second  timestamptz NOT NULL,
    tasks   integer NOT NULL,
    PRIMARY KEY (user_id, second)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX creations_by_age ON scheduler.creations (second);
