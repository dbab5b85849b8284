-- name: list_capacities
-- Of each pool that has executors which were heard of lately: those that take runs, and those being drained.
SELECT served.pool,
       count(*) FILTER (WHERE e.state = 'active')::int AS executors,
       count(*) FILTER (WHERE e.state = 'draining')::int AS draining,
       coalesce(sum(e.slots) FILTER (WHERE e.state = 'active'), 0)::int AS slots,
       coalesce(sum(e.running) FILTER (WHERE e.state = 'active'), 0)::int AS running,
       (SELECT count(*) FROM scheduler.runs r WHERE r.status = 'queued' AND r.pool = served.pool)::int AS outstanding
  FROM scheduler.executors e
 CROSS JOIN LATERAL unnest(e.pools) AS served(pool)
 WHERE e.last_seen_at > now() - %(seen_within)s
 GROUP BY served.pool

-- name: list_under_way
SELECT user_id, concurrency_key, count(*)::int AS runs
  FROM scheduler.tasks
 WHERE status IN ('queued', 'running')
 GROUP BY user_id, concurrency_key

-- name: list_running_quotas
SELECT user_id, running FROM scheduler.quotas WHERE running IS NOT NULL

-- name: count_ahead
-- How many tasks go before this one, were nothing to come: of its user those that are due before it, of the others
-- what brings them as far as its user will be then (shares.py), and all of a higher priority. It counts to a limit
-- and looks at so many lanes, whatever waits.
WITH live AS MATERIALIZED (
    SELECT user_id, count(*)::int AS runs
      FROM scheduler.tasks
     WHERE status IN ('queued', 'running') AND pool = %(pool)s
     GROUP BY user_id),
own AS MATERIALIZED (
    SELECT count(*)::int AS ahead
      FROM (SELECT FROM scheduler.lanes l
             CROSS JOIN LATERAL (
                   SELECT FROM scheduler.tasks t
                    WHERE t.status = 'pending' AND t.user_id = l.user_id AND t.pool = l.pool
                      AND t.priority = l.priority AND t.concurrency_key = l.concurrency_key
                      AND t.concurrency_limit = l.concurrency_limit AND t.due_at < %(due_at)s
                    LIMIT %(most)s) one
             WHERE l.user_id = %(user_id)s AND l.pool = %(pool)s AND l.priority = %(priority)s
               AND l.due_at < %(due_at)s
             LIMIT %(most)s) few),
mine AS MATERIALIZED (
    SELECT own.ahead + coalesce((SELECT runs FROM live WHERE user_id = %(user_id)s), 0) AS reach FROM own),
others AS MATERIALIZED (
    SELECT l.*, %(most)s AS before
      FROM (SELECT * FROM scheduler.lanes
             WHERE pool = %(pool)s AND priority > %(priority)s AND due_at <= now()
             LIMIT %(most)s) l
    UNION ALL
    SELECT l.*, greatest(mine.reach + (l.due_at < %(due_at)s)::int - coalesce(live.runs, 0), 0)
      FROM mine
     CROSS JOIN (SELECT * FROM scheduler.lanes
                  WHERE pool = %(pool)s AND priority = %(priority)s AND due_at <= now()
                    AND user_id <> %(user_id)s
                  ORDER BY due_at
                  LIMIT %(most)s) l
      LEFT JOIN live ON live.user_id = l.user_id)
SELECT least(own.ahead + (
           SELECT count(*)
             FROM (SELECT FROM others l
                    CROSS JOIN LATERAL (
                          SELECT FROM scheduler.tasks t
                           WHERE t.status = 'pending' AND t.user_id = l.user_id AND t.pool = l.pool
                             AND t.priority = l.priority AND t.concurrency_key = l.concurrency_key
                             AND t.concurrency_limit = l.concurrency_limit AND t.due_at <= now()
                           LIMIT l.before) one
                    LIMIT %(most)s) few), %(most)s)::int AS count
  FROM own

-- name: count_published_ahead
SELECT count(*)::int AS count
  FROM scheduler.runs r
  JOIN scheduler.runs before ON before.status = 'queued' AND before.pool = r.pool AND before.queued_at < r.queued_at
 WHERE r.task_id = %(task_id)s AND r.status = 'queued'
