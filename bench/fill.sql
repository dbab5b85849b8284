-- Fills the scheduler's tables with tasks of a thousand users: pending ones that are due later, and finished ones with
-- their runs, spread over the last 30 days. Every tenth belongs to :owner. All triggers are at work. The large indexes that
-- no loop needs meanwhile are made anew at the end: kept up row by row, they take an hour.
\set ON_ERROR_STOP on
\set QUIET on
SET synchronous_commit = off;
SET maintenance_work_mem = '128MB';
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
    chunk CONSTANT int := 20000;
BEGIN
    FOR lowest IN 0..total - 1 BY chunk LOOP
        INSERT INTO scheduler.tasks (
            id, user_id, status, reason, name, labels, image, command, args, environment,
            timeout_seconds, stop_grace_seconds, cpus, memory_mb, pids, network, scheduled_at, due_at, attempts,
            result, exit_code, created_at, queued_at, started_at, finished_at, updated_at, request_id)
        SELECT md5('task' || n)::uuid,
               CASE WHEN n % 10 = 0 THEN owner ELSE md5('user' || hashint4(n) % 1000)::uuid END,
               status, CASE status WHEN 'failed' THEN 'exit_nonzero' END,
               CASE n % 4 WHEN 0 THEN 'nightly-report' WHEN 1 THEN 'import-' || n WHEN 2 THEN 'resize-' || n % 90 END,
               jsonb_build_object('team', 'team-' || hashint4(n + 1) % 10, 'batch', (n / 1000)::text),
               'busybox:latest', 'echo', ARRAY['hello', n::text], jsonb_build_object('NUMBER', n::text),
               3600, 10, 1, 256, 128, 'egress',
               CASE status WHEN 'pending' THEN now() + interval '1 day' + n * interval '1 second' ELSE at END,
               CASE status WHEN 'pending' THEN now() + interval '1 day' + n * interval '1 second' ELSE at END,
               (status <> 'pending')::int,
               CASE WHEN status <> 'pending' THEN 'hello'::bytea END,
               CASE status WHEN 'completed' THEN 0 WHEN 'failed' THEN 1 END,
               at, CASE WHEN status <> 'pending' THEN at END,
               CASE WHEN status <> 'pending' THEN at + interval '1 second' END,
               CASE WHEN status <> 'pending' THEN at + interval '5 seconds' END,
               at, md5(n::text)
          FROM (SELECT n, now() - interval '30 days' + n * (interval '30 days' / total) AS at,
                       CASE WHEN abs(hashint4(n + 2)) % total < pending THEN 'pending'
                            ELSE (ARRAY['failed', 'cancelled', 'completed'])[least(1 + n % 50, 3)] END AS status
                  FROM generate_series(lowest, least(lowest + chunk, total) - 1) AS n) AS made;
        INSERT INTO scheduler.runs (
            id, task_id, number, status, reason, exit_code, epoch, executor_id, boot_id, engine_id, queued_at,
            published_at, publish_count, next_publish_at, claimed_at, started_at, finished_at, request_id)
        SELECT md5('run' || n)::uuid, t.id, 1, t.status, t.reason, t.exit_code, 1, 'e', 'b', 'e', t.queued_at,
               t.queued_at, 1, t.queued_at, t.queued_at, t.started_at, t.finished_at, t.request_id
          FROM generate_series(lowest, least(lowest + chunk, total) - 1) AS n
          JOIN scheduler.tasks t ON t.id = md5('task' || n)::uuid AND t.status <> 'pending';
        COMMIT;
    END LOOP;
END $$;
CALL pg_temp.fill(:'owner'::uuid, :pending, :finished);
SELECT put_back FROM indexes \gexec
VACUUM (ANALYZE) scheduler.tasks, scheduler.task_terms, scheduler.runs;
ALTER SYSTEM RESET max_wal_size;
SELECT pg_reload_conf() \g /dev/null
CHECKPOINT;
