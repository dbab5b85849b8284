-- name: create_tasks
-- Each a microsecond after the one before, so that a batch is listed and dispatched in its order.
INSERT INTO scheduler.tasks (
    id, user_id, priority, name, labels, image, command, args, entrypoint, environment,
    timeout_seconds, stop_grace_seconds, cpus, memory_mb, pids, network, on_executor_lost,
    max_attempts, backoff_seconds, max_backoff_seconds, retry_exit_codes,
    pool, concurrency_key, concurrency_limit, queue_ttl_seconds, request_id,
    scheduled_at, due_at, expires_at, created_at, updated_at
)
SELECT id, user_id, priority, name, labels, image, command, args, entrypoint, environment,
       timeout_seconds, stop_grace_seconds, cpus, memory_mb, pids, network, on_executor_lost,
       max_attempts, backoff_seconds, max_backoff_seconds, retry_exit_codes,
       pool, concurrency_key, concurrency_limit, queue_ttl_seconds, request_id,
       coalesce(scheduled_at, moment), greatest(scheduled_at, moment),
       greatest(scheduled_at, moment) + queue_ttl_seconds * interval '1 second', moment, moment
  FROM ROWS FROM (json_populate_recordset(NULL::scheduler.tasks, %(tasks)s)) WITH ORDINALITY AS new
 CROSS JOIN LATERAL (SELECT now() + (new.ordinality - 1) * interval '1 microsecond') AS own(moment)
-- The same insert again, after a broken connection: the first one was committed.
ON CONFLICT (id) DO NOTHING
RETURNING *, NULL AS run_status, false AS run_published, false AS run_pulling

-- name: find_task
SELECT t.*, r.status AS run_status, r.published_at IS NOT NULL AS run_published, l.pulling AS run_pulling
  FROM scheduler.tasks t
  LEFT JOIN scheduler.runs r ON r.task_id = t.id AND r.status IN ('queued', 'claimed', 'running', 'stopping')
  LEFT JOIN scheduler.leases l ON l.run_id = r.id
 WHERE t.id = %(task_id)s AND t.deleted_at IS NULL

-- name: find_owner
SELECT user_id FROM scheduler.tasks WHERE id = %(task_id)s AND deleted_at IS NULL

-- name: list_owners
SELECT DISTINCT user_id FROM scheduler.tasks WHERE id = ANY (%(task_ids)s)

-- name: lock_task
-- Whoever changes a task's run holds the lock of the task's row, so no two writers wait for each other in turn.
SELECT id, user_id, status FROM scheduler.tasks
 WHERE id = %(task_id)s AND deleted_at IS NULL
   FOR UPDATE

-- name: list_own_tasks
SELECT t.id
  FROM unnest(%(task_ids)s::uuid[]) WITH ORDINALITY AS wanted(id, position)
  JOIN scheduler.tasks t ON t.id = wanted.id
 WHERE (%(user_id)s::uuid IS NULL OR t.user_id = %(user_id)s) AND t.deleted_at IS NULL
 ORDER BY wanted.position

-- name: lock_live_tasks
SELECT id FROM scheduler.tasks
 WHERE id = ANY (%(task_ids)s) AND (%(user_id)s::uuid IS NULL OR user_id = %(user_id)s)
   AND status IN ('pending', 'queued', 'running') AND deleted_at IS NULL
 ORDER BY id
   FOR NO KEY UPDATE

-- name: request_stops
UPDATE scheduler.runs
   SET status = 'stopping', stop_requested_at = now(), stop_reason = 'cancelled'
 WHERE task_id = ANY (%(task_ids)s) AND status IN ('claimed', 'running')
RETURNING executor_id

-- name: hide_task
UPDATE scheduler.tasks t
   SET deleted_at = now(), updated_at = now()
 WHERE t.id = %(task_id)s AND t.deleted_at IS NULL
   AND EXISTS (
       SELECT FROM scheduler.runs
        WHERE task_id = t.id AND status IN ('queued', 'claimed', 'running', 'stopping'))

-- name: delete_task
DELETE FROM scheduler.tasks t
 WHERE t.id = %(task_id)s
   AND NOT EXISTS (
       SELECT FROM scheduler.runs
        WHERE task_id = t.id AND status IN ('queued', 'claimed', 'running', 'stopping'))

-- name: list_runs
SELECT r.number, r.status, r.reason, r.exit_code, r.error_msg, r.executor_id, r.engine_id, r.image_digest,
       r.due_at, r.queued_at, r.claimed_at, r.started_at, r.finished_at, r.closed_at,
       r.pulled_seconds, r.max_memory_mb, r.cpu_seconds,
       t.cpus, t.memory_mb, t.pids, t.timeout_seconds, t.stop_grace_seconds
  FROM scheduler.runs r
  JOIN scheduler.tasks t ON t.id = r.task_id
 WHERE r.task_id = %(task_id)s
 ORDER BY r.number DESC

-- name: read_capacity
SELECT count(*) AS executors, coalesce(sum(slots), 0) AS slots, coalesce(sum(running), 0) AS running
  FROM scheduler.executors
 WHERE last_seen_at > now() - %(seen_within)s
