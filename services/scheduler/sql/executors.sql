-- name: list_executors
SELECT e.id, e.host, e.engine_id, e.pools, e.slots, e.state, e.started_at, e.last_seen_at,
       e.last_seen_at > now() - %(seen_within)s AS is_heard,
       (SELECT count(*) FROM scheduler.leases l WHERE l.executor_id = e.id)::int AS running
  FROM scheduler.executors e
 WHERE e.id > %(after)s
 ORDER BY e.id
 LIMIT %(limit)s

-- name: set_executor_state
UPDATE scheduler.executors e
   SET state = %(state)s
 WHERE e.id = %(id)s
RETURNING e.id, e.host, e.engine_id, e.pools, e.slots, e.state, e.started_at, e.last_seen_at,
          e.last_seen_at > now() - %(seen_within)s AS is_heard,
          (SELECT count(*) FROM scheduler.leases l WHERE l.executor_id = e.id)::int AS running
