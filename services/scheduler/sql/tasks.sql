-- name: create_task
INSERT INTO scheduler.tasks (
    id, user_id, priority, name, labels, image, command, args, entrypoint, environment,
    timeout_seconds, stop_grace_seconds, cpus, memory_mb, pids, network, on_executor_lost,
    max_attempts, backoff_seconds, max_backoff_seconds, retry_exit_codes,
    pool, concurrency_key, concurrency_limit, queue_ttl_seconds, expires_at,
    scheduled_at, due_at, request_id
) VALUES (
    %(id)s, %(user_id)s, %(priority)s, %(name)s, %(labels)s, %(image)s, %(command)s, %(args)s::text[],
    %(entrypoint)s::text[], %(environment)s,
    %(timeout_seconds)s, %(stop_grace_seconds)s, %(cpus)s, %(memory_mb)s, %(pids)s, %(network)s,
    %(on_executor_lost)s,
    %(max_attempts)s, %(backoff_seconds)s, %(max_backoff_seconds)s, %(retry_exit_codes)s::int[],
    %(pool)s, %(concurrency_key)s, %(concurrency_limit)s, %(queue_ttl_seconds)s,
    greatest(%(scheduled_at)s, now()) + %(queue_ttl_seconds)s::int * interval '1 second',
    coalesce(%(scheduled_at)s, now()), greatest(%(scheduled_at)s, now()), %(request_id)s
)
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

-- name: list_tasks
SELECT t.*, r.status AS run_status, r.published_at IS NOT NULL AS run_published, l.pulling AS run_pulling
  FROM (
        SELECT page.id, page.created_at
          FROM unnest(%(statuses)s::text[]) AS wanted(status)
         CROSS JOIN LATERAL (
               SELECT id, created_at
                 FROM scheduler.tasks
                WHERE status = wanted.status AND deleted_at IS NULL
                  AND created_at >= %(since)s AND created_at < %(until)s
                  AND (created_at, id) < (%(before_time)s, %(before_id)s)
                ORDER BY created_at DESC, id DESC
                LIMIT %(limit)s) page
         ORDER BY page.created_at DESC, page.id DESC
         LIMIT %(limit)s) listed
  JOIN scheduler.tasks t ON t.id = listed.id
  LEFT JOIN scheduler.runs r ON r.task_id = t.id AND r.status IN ('queued', 'claimed', 'running', 'stopping')
  LEFT JOIN scheduler.leases l ON l.run_id = r.id
 ORDER BY listed.created_at DESC, listed.id DESC

-- name: list_tasks_of_user
SELECT t.*, r.status AS run_status, r.published_at IS NOT NULL AS run_published, l.pulling AS run_pulling
  FROM (
        SELECT page.id, page.created_at
          FROM unnest(%(statuses)s::text[]) AS wanted(status)
         CROSS JOIN LATERAL (
               SELECT id, created_at
                 FROM scheduler.tasks
                WHERE user_id = %(user_id)s AND status = wanted.status AND deleted_at IS NULL
                  AND created_at >= %(since)s AND created_at < %(until)s
                  AND (created_at, id) < (%(before_time)s, %(before_id)s)
                ORDER BY created_at DESC, id DESC
                LIMIT %(limit)s) page
         ORDER BY page.created_at DESC, page.id DESC
         LIMIT %(limit)s) listed
  JOIN scheduler.tasks t ON t.id = listed.id
  LEFT JOIN scheduler.runs r ON r.task_id = t.id AND r.status IN ('queued', 'claimed', 'running', 'stopping')
  LEFT JOIN scheduler.leases l ON l.run_id = r.id
 ORDER BY listed.created_at DESC, listed.id DESC

-- name: lock_task
-- Whoever changes a task's run holds the lock of the task's row, so no two writers wait for each other in turn.
SELECT id, user_id, status FROM scheduler.tasks
 WHERE id = %(task_id)s AND deleted_at IS NULL
   FOR UPDATE

-- name: cancel_unclaimed_run
UPDATE scheduler.runs
   SET status = 'cancelled', finished_at = now(), stop_requested_at = now(), stop_reason = 'cancelled'
 WHERE task_id = %(task_id)s AND status = 'queued'

-- name: cancel_waiting_task
UPDATE scheduler.tasks t
   SET status = 'cancelled', finished_at = now(), updated_at = now()
 WHERE t.id = %(task_id)s AND t.status IN ('pending', 'queued')
   AND NOT EXISTS (
       SELECT FROM scheduler.runs
        WHERE task_id = t.id AND status IN ('queued', 'claimed', 'running', 'stopping'))

-- name: request_stop
UPDATE scheduler.runs
   SET status = 'stopping', stop_requested_at = now(), stop_reason = 'cancelled'
 WHERE task_id = %(task_id)s AND status IN ('claimed', 'running')
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
