-- name: look_ahead
-- For how long the longest waiting task has been due, and when the next one will be. Index probes, however many wait.
SELECT clock_timestamp() - least(
           (SELECT min(due_at AT TIME ZONE 'UTC') FROM scheduler.lanes
             WHERE due_at AT TIME ZONE 'UTC' <= now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC',
           (SELECT min(due_at) FROM scheduler.arrivals WHERE due_at <= now())) AS overdue,
       least((SELECT min(due_at AT TIME ZONE 'UTC') FROM scheduler.lanes
               WHERE due_at AT TIME ZONE 'UTC' > now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC',
             (SELECT min(due_at) FROM scheduler.arrivals WHERE due_at > now())) - clock_timestamp() AS due_in

-- name: lock_dispatch
-- One dispatch decides at a time, so that shares, quotas and groups are exact with any number of loops. A loop that
-- is frozen or cut off in between loses the lock with its session.
SELECT pg_advisory_xact_lock(7201156),
       set_config('idle_in_transaction_session_timeout', '5s', true)

-- name: take_arrivals
WITH arrived AS (
    DELETE FROM scheduler.arrivals
     WHERE ctid = ANY (ARRAY(
           SELECT ctid FROM scheduler.arrivals WHERE due_at <= now() ORDER BY due_at LIMIT %(limit)s))
    RETURNING pool, priority, user_id, concurrency_key, concurrency_limit, due_at),
noted AS (
    INSERT INTO scheduler.lanes AS l (pool, priority, user_id, concurrency_key, concurrency_limit, due_at)
    SELECT pool, priority, user_id, concurrency_key, concurrency_limit, min(due_at)
      FROM arrived
     GROUP BY pool, priority, user_id, concurrency_key, concurrency_limit
    ON CONFLICT (user_id, pool, priority, concurrency_key, concurrency_limit) DO UPDATE
       SET due_at = excluded.due_at
     WHERE l.due_at > excluded.due_at)
SELECT count(*) AS arrived FROM arrived

-- name: list_rooms
-- Each pool of an executor that is alive and takes runs: its slots, those that are free, and what is on its way.
SELECT served.pool, sum(e.slots)::int AS slots,
       sum(greatest(e.slots - coalesce(held.runs, 0), 0))::int AS free,
       sum(e.claims_total)::bigint AS claims_total,
       (SELECT count(*) FROM scheduler.runs r WHERE r.status = 'queued' AND r.pool = served.pool)::int AS outstanding
  FROM scheduler.executors e
 CROSS JOIN LATERAL unnest(e.pools) AS served(pool)
  LEFT JOIN (SELECT executor_id, count(*) AS runs FROM scheduler.leases GROUP BY executor_id) held
    ON held.executor_id = e.id
 WHERE e.last_seen_at > now() - %(seen_within)s AND e.state = 'active'
 GROUP BY served.pool

-- name: list_lanes
-- The due lanes that may get something now, in each pool: of users of whom nothing runs those with the highest
-- priority, then the longest due, and of the others, who are few, each one's own. What a group or a quota holds back
-- is passed over here, so it costs nothing. A lane may be empty: what was due in it may have been cancelled.
WITH live AS MATERIALIZED (
    SELECT user_id, pool, concurrency_key, count(*)::int AS runs
      FROM scheduler.tasks
     WHERE status IN ('queued', 'running')
     GROUP BY user_id, pool, concurrency_key),
of_user AS MATERIALIZED (
    SELECT user_id, sum(runs)::int AS runs FROM live GROUP BY user_id),
in_pool AS MATERIALIZED (
    SELECT user_id, pool, sum(runs)::int AS runs FROM live GROUP BY user_id, pool),
in_group AS MATERIALIZED (
    SELECT user_id, concurrency_key, sum(runs)::int AS runs
      FROM live
     WHERE concurrency_key <> ''
     GROUP BY user_id, concurrency_key),
blocked AS MATERIALIZED (
    SELECT user_id FROM scheduler.quotas WHERE running = 0),
found AS (
    SELECT lane.*
      FROM unnest(%(pools)s::text[]) AS wanted(pool)
     CROSS JOIN LATERAL (
           SELECT head.*
             FROM generate_series(9, 0, -1) AS level(priority)
            CROSS JOIN LATERAL (
                  SELECT l.*
                    FROM scheduler.lanes l
                   WHERE l.pool = wanted.pool AND l.priority = level.priority AND l.due_at <= now()
                     AND l.user_id NOT IN (SELECT user_id FROM of_user)
                     AND l.user_id NOT IN (SELECT user_id FROM blocked)
                   ORDER BY l.due_at
                   LIMIT %(limit)s) head
            LIMIT %(limit)s) lane
    UNION ALL
    SELECT lane.*
      FROM of_user
     CROSS JOIN unnest(%(pools)s::text[]) AS wanted(pool)
     CROSS JOIN LATERAL (
           SELECT l.*
             FROM scheduler.lanes l
            WHERE l.user_id = of_user.user_id AND l.pool = wanted.pool AND l.due_at <= now()
              AND NOT EXISTS (
                  SELECT FROM in_group g
                   WHERE g.user_id = l.user_id AND g.concurrency_key = l.concurrency_key
                     AND g.runs >= l.concurrency_limit)
            ORDER BY l.priority DESC, l.due_at
            LIMIT %(limit)s) lane)
SELECT found.pool, found.priority, found.user_id, found.concurrency_key, found.concurrency_limit, found.due_at,
       due.tasks,
       coalesce(q.running, %(default_running)s) AS quota,
       coalesce(of_user.runs, 0) AS user_runs,
       coalesce(in_pool.runs, 0) AS pool_runs,
       coalesce(in_group.runs, 0) AS group_runs
  FROM found
  LEFT JOIN of_user ON of_user.user_id = found.user_id
  LEFT JOIN in_pool ON in_pool.user_id = found.user_id AND in_pool.pool = found.pool
  LEFT JOIN in_group ON in_group.user_id = found.user_id AND in_group.concurrency_key = found.concurrency_key
  LEFT JOIN scheduler.quotas q ON q.user_id = found.user_id
 CROSS JOIN LATERAL (
       SELECT count(*)::int AS tasks
         FROM (SELECT FROM scheduler.tasks t
                WHERE t.status = 'pending' AND t.user_id = found.user_id AND t.pool = found.pool
                  AND t.priority = found.priority AND t.concurrency_key = found.concurrency_key
                  AND t.concurrency_limit = found.concurrency_limit AND t.due_at <= now()
                LIMIT %(many)s) few) due
 WHERE coalesce(of_user.runs, 0) < coalesce(q.running, %(default_running)s, 2147483647)

-- name: lock_due_tasks
-- From each lane as many as it may have, the longest due first; what somebody else has in hand is left alone.
SELECT share.place, due.id AS task_id, due.attempts + due.lost_count + 1 AS number, due.request_id
  FROM unnest(%(pools)s::text[], %(priorities)s::smallint[], %(user_ids)s::uuid[], %(keys)s::text[],
              %(limits)s::int[], %(counts)s::int[]) WITH ORDINALITY
       AS share(pool, priority, user_id, concurrency_key, concurrency_limit, count, place)
 CROSS JOIN LATERAL (
       SELECT t.id, t.attempts, t.lost_count, t.request_id
         FROM scheduler.tasks t
        WHERE t.status = 'pending' AND t.user_id = share.user_id AND t.pool = share.pool
          AND t.priority = share.priority AND t.concurrency_key = share.concurrency_key
          AND t.concurrency_limit = share.concurrency_limit
          AND t.due_at <= now() AND (t.expires_at IS NULL OR t.expires_at > now())
        ORDER BY t.due_at
        LIMIT share.count
          FOR NO KEY UPDATE SKIP LOCKED) due

-- name: queue_tasks
WITH due AS (
    SELECT *
      FROM unnest(%(task_ids)s::uuid[], %(run_ids)s::uuid[], %(numbers)s::int[], %(request_ids)s::text[],
                  %(pools)s::text[])
           AS d(task_id, run_id, number, request_id, pool)),
queued AS (
    UPDATE scheduler.tasks t
       SET status = 'queued', queued_at = now(), attempts = attempts + 1, updated_at = now()
      FROM due
     WHERE t.id = due.task_id AND t.status = 'pending'
    RETURNING t.id, t.due_at)
INSERT INTO scheduler.runs (id, task_id, number, request_id, pool, due_at, next_publish_at)
SELECT due.run_id, due.task_id, due.number, due.request_id, due.pool, queued.due_at, now() + %(publish_within)s
  FROM due
  JOIN queued ON queued.id = due.task_id

-- name: move_lanes
-- After something was taken out of lanes: each is due when its first task is, and gone when it is empty.
WITH head AS (
    SELECT lane.*, first.due_at
      FROM unnest(%(pools)s::text[], %(priorities)s::smallint[], %(user_ids)s::uuid[], %(keys)s::text[],
                  %(limits)s::int[])
           AS lane(pool, priority, user_id, concurrency_key, concurrency_limit)
      LEFT JOIN LATERAL (
           SELECT t.due_at
             FROM scheduler.tasks t
            WHERE t.status = 'pending' AND t.user_id = lane.user_id AND t.pool = lane.pool
              AND t.priority = lane.priority AND t.concurrency_key = lane.concurrency_key
              AND t.concurrency_limit = lane.concurrency_limit
            ORDER BY t.due_at
            LIMIT 1) first ON true),
moved AS (
    UPDATE scheduler.lanes l
       SET due_at = head.due_at
      FROM head
     WHERE (l.user_id, l.pool, l.priority, l.concurrency_key, l.concurrency_limit)
         = (head.user_id, head.pool, head.priority, head.concurrency_key, head.concurrency_limit)
       AND head.due_at IS NOT NULL AND l.due_at <> head.due_at)
DELETE FROM scheduler.lanes l
 USING head
 WHERE (l.user_id, l.pool, l.priority, l.concurrency_key, l.concurrency_limit)
     = (head.user_id, head.pool, head.priority, head.concurrency_key, head.concurrency_limit)
   AND head.due_at IS NULL
