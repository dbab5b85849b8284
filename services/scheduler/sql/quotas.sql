-- name: find_quota
SELECT running, queued, created_per_minute FROM scheduler.quotas WHERE user_id = %(user_id)s

-- name: put_quota
INSERT INTO scheduler.quotas (user_id, running, queued, created_per_minute)
VALUES (%(user_id)s, %(running)s, %(queued)s, %(created_per_minute)s)
ON CONFLICT (user_id) DO UPDATE
   SET running = excluded.running, queued = excluded.queued, created_per_minute = excluded.created_per_minute

-- name: lock_creation
-- Those who create tasks of one user go one after the other: each counts what the one before has committed.
SELECT pg_advisory_xact_lock(7201157, hashtext(%(user_id)s::text))

-- name: have_been_created
SELECT EXISTS (SELECT FROM scheduler.tasks WHERE id = ANY (%(task_ids)s)) AS answer

-- name: count_waiting
-- No further than it matters.
SELECT count(*) AS count
  FROM (SELECT FROM scheduler.tasks
         WHERE user_id = %(user_id)s AND status IN ('pending', 'queued')
         LIMIT %(most)s) few

-- name: list_creations
-- Counted by the end of the second, so that no minute holds more than the quota says.
SELECT tasks, extract(epoch FROM second + interval '1 minute' - statement_timestamp())::float8 AS counts_for_seconds
  FROM scheduler.creations
 WHERE user_id = %(user_id)s AND second > statement_timestamp() - interval '1 minute'
 ORDER BY second

-- name: note_creation
INSERT INTO scheduler.creations AS c (user_id, second, tasks)
VALUES (%(user_id)s, date_trunc('second', statement_timestamp()) + interval '1 second', %(tasks)s)
ON CONFLICT (user_id, second) DO UPDATE SET tasks = c.tasks + excluded.tasks

-- name: forget_creations
DELETE FROM scheduler.creations WHERE second < now() - interval '2 minutes'

-- name: forget_quotas
DELETE FROM scheduler.quotas WHERE user_id = ANY (%(user_ids)s)
