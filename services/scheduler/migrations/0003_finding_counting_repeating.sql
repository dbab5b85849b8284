SET LOCAL lock_timeout = '5s';

-- The schedule that made the task.
ALTER TABLE scheduler.tasks ADD COLUMN schedule_id uuid;

-- What a task is found by besides owner, status and time: l:KEY:VALUE for each label, n:NAME, s:SCHEDULE. A row is
-- written once and never changed, while a task's own index entries are written anew with each of its moves.
CREATE TABLE scheduler.task_terms (
    user_id    uuid NOT NULL,
    term       text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL,
    task_id    uuid NOT NULL
) WITH (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.02
);

-- How many tasks of each status a user has: the sum of the counts and of the changes, which the sweep adds up now
-- and then. Changes are only ever inserted, so nobody who moves tasks waits for another one.
CREATE TABLE scheduler.task_counts (
    user_id uuid NOT NULL,
    status  text NOT NULL,
    count   bigint NOT NULL,
    PRIMARY KEY (user_id, status)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE TABLE scheduler.task_count_changes (
    user_id uuid NOT NULL,
    status  text NOT NULL,
    change  bigint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

CREATE FUNCTION scheduler.list_terms(name text, labels jsonb, schedule_id uuid) RETURNS SETOF text
LANGUAGE sql IMMUTABLE AS $$
    SELECT 'l:' || label.key || ':' || label.value FROM jsonb_each_text(labels) AS label
    UNION ALL SELECT 'n:' || name WHERE name IS NOT NULL
    UNION ALL SELECT 's:' || schedule_id::text WHERE schedule_id IS NOT NULL
$$;

CREATE FUNCTION scheduler.note_added_tasks() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO scheduler.task_count_changes (user_id, status, change)
    SELECT user_id, status, count(*) FROM added GROUP BY user_id, status;
    INSERT INTO scheduler.task_terms (user_id, term, created_at, task_id)
    SELECT t.user_id, term, t.created_at, t.id
      FROM added t
     CROSS JOIN LATERAL scheduler.list_terms(t.name, t.labels, t.schedule_id) AS term;
    RETURN NULL;
END $$;

-- A deleted task that is still being stopped doesn't count.
CREATE FUNCTION scheduler.note_moved_tasks() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO scheduler.task_count_changes (user_id, status, change)
    SELECT user_id, status, sum(change)
      FROM (SELECT user_id, status, -1 AS change FROM before WHERE deleted_at IS NULL
            UNION ALL
            SELECT user_id, status, 1 FROM after WHERE deleted_at IS NULL) AS changes
     GROUP BY user_id, status
    HAVING sum(change) <> 0;
    RETURN NULL;
END $$;

CREATE FUNCTION scheduler.note_removed_tasks() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO scheduler.task_count_changes (user_id, status, change)
    SELECT user_id, status, -count(*) FROM removed WHERE deleted_at IS NULL GROUP BY user_id, status;
    DELETE FROM scheduler.task_terms found
     USING removed t CROSS JOIN LATERAL scheduler.list_terms(t.name, t.labels, t.schedule_id) AS term
     WHERE found.user_id = t.user_id AND found.term = term.term
       AND found.created_at = t.created_at AND found.task_id = t.id;
    RETURN NULL;
END $$;

CREATE TRIGGER tasks_added AFTER INSERT ON scheduler.tasks
    REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION scheduler.note_added_tasks();
CREATE TRIGGER tasks_moved AFTER UPDATE ON scheduler.tasks
    REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION scheduler.note_moved_tasks();
CREATE TRIGGER tasks_removed AFTER DELETE ON scheduler.tasks
    REFERENCING OLD TABLE AS removed
    FOR EACH STATEMENT EXECUTE FUNCTION scheduler.note_removed_tasks();

-- The triggers' lock keeps writers out until the commit, so what is there already is counted once.
INSERT INTO scheduler.task_counts (user_id, status, count)
SELECT user_id, status, count(*) FROM scheduler.tasks WHERE deleted_at IS NULL GROUP BY user_id, status;
-- Some blocks at a time: within one statement each call of jsonb_each_text keeps a little memory until the end.
DO $$
DECLARE
    blocks CONSTANT bigint := pg_relation_size('scheduler.tasks') / current_setting('block_size')::bigint;
BEGIN
    FOR lowest IN 0..blocks BY 10000 LOOP
        INSERT INTO scheduler.task_terms (user_id, term, created_at, task_id)
        SELECT t.user_id, term, t.created_at, t.id
          FROM scheduler.tasks t
         CROSS JOIN LATERAL scheduler.list_terms(t.name, t.labels, t.schedule_id) AS term
         WHERE t.ctid >= format('(%s,0)', lowest)::tid AND t.ctid < format('(%s,0)', lowest + 10000)::tid;
    END LOOP;
END $$;

-- One for a user's tasks, one for an admin's look at everybody's.
ALTER TABLE scheduler.task_terms ADD PRIMARY KEY (user_id, term, created_at, task_id);
CREATE INDEX task_terms_of_all ON scheduler.task_terms (term, created_at, task_id);

-- The first answer to each request that came with an Idempotency-Key, written with what the request did.
CREATE TABLE scheduler.idempotency_keys (
    user_id     uuid NOT NULL,
    key         text COLLATE "C" NOT NULL,
    fingerprint bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    status      smallint,
    location    text,
    body        bytea,
    PRIMARY KEY (user_id, key)
);
CREATE INDEX idempotency_keys_by_age ON scheduler.idempotency_keys (created_at);
