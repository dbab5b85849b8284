-- Fills the scheduler's tables with tasks of a thousand users: pending ones, and finished ones with their runs, spread
-- over the last 6 days, so that retention leaves them alone. Every tenth belongs to :owner. Of the pending ones one in a
-- hundred has been due for an hour, in a pool that no executor serves; the others are due later. What the triggers do for
-- each statement is done here once for many tasks, and the large indexes that no loop needs meanwhile are made anew at
-- the end: kept up row by row, they take an hour.
\set ON_ERROR_STOP on
\set QUIET on
SET synchronous_commit = off;
SET session_replication_role = replica;
SET work_mem = '64MB';
SET maintenance_work_mem = '192MB';
ALTER SYSTEM SET max_wal_size = '8GB';
SELECT pg_reload_conf() \g /dev/null

CREATE TEMP TABLE indexes AS
SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname) AS take_away,
       format('ALTER TABLE %s ADD CONSTRAINT %I %s', conrelid::regclass, conname, pg_get_constraintdef(oid)) AS put_back
  FROM pg_constraint
 WHERE conname IN ('task_terms_pkey', 'runs_number')
UNION ALL
SELECT format('DROP INDEX %s', name::regclass), pg_get_indexdef(name::regclass)
  FROM unnest(ARRAY['scheduler.tasks_by_user', 'scheduler.tasks_by_status', 'scheduler.task_terms_of_all']) AS name;
SELECT take_away FROM indexes \gexec

CREATE PROCEDURE pg_temp.fill(owner uuid, pending int, finished int) LANGUAGE plpgsql AS $$
DECLARE
    total CONSTANT int := pending + finished;
    chunk CONSTANT int := 100000;
BEGIN
    FOR lowest IN 0..total - 1 BY chunk LOOP
        WITH numbered AS (
            SELECT n, now() - interval '6 days' + n * (interval '6 days' / total) AS at,
                   CASE WHEN abs(hashint4(n + 2)::bigint) % total < pending THEN 'pending'
                        ELSE (ARRAY['failed', 'cancelled', 'completed'])[least(1 + n % 50, 3)] END AS status
              FROM generate_series(lowest, least(lowest + chunk, total) - 1) AS n),
        timed AS (
            SELECT *, status <> 'pending' AS is_over,
                   CASE WHEN status <> 'pending' THEN at
                        WHEN hashint4(n + 3) % 100 = 0 THEN now() - interval '1 hour'
                        ELSE now() + interval '1 day' + n * interval '1 second' END AS due
              FROM numbered),
        added AS (
            INSERT INTO scheduler.tasks (
                id, user_id, status, reason, name, labels, image, command, args, environment,
                timeout_seconds, stop_grace_seconds, cpus, memory_mb, pids, network, scheduled_at, due_at, attempts,
                result, exit_code, created_at, queued_at, started_at, finished_at, updated_at, request_id, pool)
            -- In order, so that the indexes grow at their end, and yet spread like random ones, so that what is
            -- created later falls anywhere among them.
            SELECT (lpad(to_hex((n::bigint << 32) / total), 8, '0') || substr(md5('task' || n), 9))::uuid,
                   CASE WHEN n % 10 = 0 THEN owner ELSE md5('user' || hashint4(n) % 1000)::uuid END,
                   status, CASE status WHEN 'failed' THEN 'exit_nonzero' END,
                   CASE n % 4 WHEN 0 THEN 'nightly-report' WHEN 1 THEN 'import-' || n WHEN 2 THEN 'resize-' || n % 90 END,
                   jsonb_build_object('team', 'team-' || hashint4(n + 1) % 10, 'batch', (n / 1000)::text),
                   'busybox:latest', 'echo', ARRAY['hello', n::text], jsonb_build_object('NUMBER', n::text),
                   3600, 10, 1, 256, 128, 'egress', due, due, is_over::int,
                   CASE WHEN is_over THEN 'hello'::bytea END,
                   CASE status WHEN 'completed' THEN 0 WHEN 'failed' THEN 1 END,
                   at, CASE WHEN is_over THEN at END,
                   CASE WHEN is_over THEN at + interval '1 second' END,
                   CASE WHEN is_over THEN at + interval '5 seconds' END,
                   at, md5(n::text), CASE WHEN is_over OR due > now() THEN 'default' ELSE 'unserved' END
              FROM timed
            RETURNING *),
        ran AS (
            INSERT INTO scheduler.runs (
                id, task_id, number, status, reason, exit_code, epoch, executor_id, boot_id, engine_id, queued_at,
                published_at, publish_count, next_publish_at, claimed_at, started_at, finished_at, request_id)
            SELECT (left(id::text, 8) || substr(md5('run' || id::text), 9))::uuid, id, 1, status, reason, exit_code, 1, 'e', 'b', 'e', queued_at,
                   queued_at, 1, queued_at, queued_at, started_at, finished_at, request_id
              FROM added
             WHERE status <> 'pending'),
        counted AS (
            INSERT INTO scheduler.task_count_changes (user_id, status, change)
            SELECT user_id, status, count(*) FROM added GROUP BY user_id, status),
        arrived AS (
            INSERT INTO scheduler.arrivals (pool, priority, user_id, concurrency_key, concurrency_limit, due_at)
            SELECT pool, priority, user_id, concurrency_key, concurrency_limit, min(due_at)
              FROM added
             WHERE status = 'pending'
             GROUP BY pool, priority, user_id, concurrency_key, concurrency_limit)
        INSERT INTO scheduler.task_terms (user_id, term, created_at, task_id)
        SELECT t.user_id, term, t.created_at, t.id
          FROM added t
         CROSS JOIN LATERAL scheduler.list_terms(t.name, t.labels, t.schedule_id) AS term;
        COMMIT;
    END LOOP;
END $$;
CALL pg_temp.fill(:'owner'::uuid, :pending, :finished);
SELECT put_back FROM indexes \gexec
VACUUM (ANALYZE) scheduler.tasks, scheduler.task_terms, scheduler.runs, scheduler.arrivals;
ALTER SYSTEM RESET max_wal_size;
SELECT pg_reload_conf() \g /dev/null
CHECKPOINT;
