-- name: mark_published
-- A run that is locked is being claimed: it needs no mark any more.
UPDATE scheduler.runs r
   SET published_at = now(), publish_count = publish_count + 1,
       next_publish_at = now() + least(%(claim_within)s * power(2, publish_count), interval '15 minutes')
  FROM (SELECT id
          FROM scheduler.runs
         WHERE id = ANY (%(run_ids)s) AND status = 'queued'
           FOR NO KEY UPDATE SKIP LOCKED) unclaimed
 WHERE r.id = unclaimed.id

-- name: leave_to_others
UPDATE scheduler.runs
   SET next_publish_at = now()
 WHERE id = ANY (%(run_ids)s) AND status = 'queued'

-- name: list_queued_pools
SELECT DISTINCT pool FROM scheduler.runs WHERE status = 'queued'

-- name: take_runs_to_publish
-- Their next time is moved at once, so that other replicas leave them alone. A queue is first in, first out: when none
-- waits in it, or one that came later has been claimed, a message that came before isn't there any more.
WITH claimed AS MATERIALIZED (
    SELECT r.pool, max(r.published_at) AS published_at
      FROM scheduler.leases l
     -- Each lease's run is looked up: see list_leases_of_engine.
     CROSS JOIN LATERAL (SELECT pool, published_at FROM scheduler.runs WHERE id = l.run_id OFFSET 0) r
     GROUP BY r.pool)
UPDATE scheduler.runs r
   SET next_publish_at = now() + %(publish_within)s
  FROM (SELECT q.id
          FROM scheduler.runs q
          LEFT JOIN claimed ON claimed.pool = q.pool
         WHERE q.status = 'queued'
           AND (q.next_publish_at <= now()
                OR q.published_at <= CASE WHEN q.pool = ANY (%(empty_pools)s) THEN now() ELSE claimed.published_at END
                                     - %(lost_within)s::interval * power(2, q.publish_count - 1))
         ORDER BY q.next_publish_at
         LIMIT %(limit)s
           FOR NO KEY UPDATE OF q SKIP LOCKED) due
 WHERE r.id = due.id
RETURNING r.id AS run_id, r.task_id, r.request_id, r.pool

-- name: purge_deleted_tasks
DELETE FROM scheduler.tasks
 WHERE id IN (
       SELECT t.id
         FROM scheduler.tasks t
        WHERE t.deleted_at IS NOT NULL AND t.status IN ('completed', 'failed', 'cancelled')
        ORDER BY t.deleted_at
        LIMIT %(limit)s
          FOR UPDATE SKIP LOCKED)

-- name: lock_waiting_tasks_of_users
SELECT t.id
  FROM scheduler.tasks t
 WHERE t.user_id = ANY (%(user_ids)s) AND t.status IN ('pending', 'queued')
   AND NOT EXISTS (
       SELECT FROM scheduler.runs WHERE task_id = t.id AND status IN ('claimed', 'running', 'stopping'))
 ORDER BY t.id
 LIMIT %(limit)s
   FOR NO KEY UPDATE SKIP LOCKED

-- name: cancel_unclaimed_runs
UPDATE scheduler.runs
   SET status = 'cancelled', finished_at = now(), stop_requested_at = now(), stop_reason = 'cancelled'
 WHERE task_id = ANY (%(task_ids)s) AND status = 'queued'

-- name: lock_expired_tasks
-- What an executor has taken is out of the queue, and so is what waits for another attempt.
SELECT t.id
  FROM scheduler.tasks t
 WHERE t.expires_at <= now() AND t.status IN ('pending', 'queued')
   AND NOT EXISTS (
       SELECT FROM scheduler.runs
        WHERE task_id = t.id AND (started_at IS NOT NULL OR status IN ('claimed', 'running', 'stopping')))
 ORDER BY t.expires_at
 LIMIT %(limit)s
   FOR NO KEY UPDATE SKIP LOCKED

-- name: expire_tasks
UPDATE scheduler.tasks t
   SET status = 'failed', reason = 'queue_ttl_expired', error_msg = %(error_msg)s,
       finished_at = now(), updated_at = now()
 WHERE t.id = ANY (%(task_ids)s) AND t.status IN ('pending', 'queued') AND t.expires_at <= now()
   AND NOT EXISTS (
       SELECT FROM scheduler.runs
        WHERE task_id = t.id AND status IN ('queued', 'claimed', 'running', 'stopping'))
RETURNING t.id, t.request_id

-- name: cancel_waiting_tasks
UPDATE scheduler.tasks t
   SET status = 'cancelled', finished_at = now(), updated_at = now()
 WHERE t.id = ANY (%(task_ids)s) AND t.status IN ('pending', 'queued')
   AND NOT EXISTS (
       SELECT FROM scheduler.runs
        WHERE task_id = t.id AND status IN ('queued', 'claimed', 'running', 'stopping'))

-- name: forget_executors
DELETE FROM scheduler.executors e
 WHERE e.last_seen_at < now() - %(silence)s
   AND NOT EXISTS (SELECT FROM scheduler.leases WHERE engine_id = e.engine_id)
