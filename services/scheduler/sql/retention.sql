-- name: delete_finished_tasks
-- The longest finished first, with their runs and output. What others have in hand is left for the next time.
DELETE FROM scheduler.tasks
 WHERE id IN (
       SELECT id
         FROM scheduler.tasks
        WHERE status = %(status)s AND finished_at < now() - %(age)s
        ORDER BY finished_at
        LIMIT %(limit)s
          FOR UPDATE SKIP LOCKED)

-- name: read_retention_lag
SELECT now() - %(age)s - min(finished_at) AS lag
  FROM scheduler.tasks
 WHERE status = %(status)s AND finished_at IS NOT NULL
