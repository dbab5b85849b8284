-- name: register_executor
-- No row when this boot was replaced by a later one of the same id: two processes never share an id.
INSERT INTO scheduler.executors AS e (id, boot_id, engine_id, host, pools, slots, running, claims_total)
VALUES (%(id)s, %(boot_id)s, %(engine_id)s, %(host)s, %(pools)s, %(slots)s, %(running)s, %(claims)s)
ON CONFLICT (id) DO UPDATE
   SET boot_id = excluded.boot_id,
       engine_id = excluded.engine_id,
       host = excluded.host,
       pools = excluded.pools,
       slots = excluded.slots,
       running = excluded.running,
       claims_total = e.claims_total + excluded.claims_total,
       last_seen_at = now(),
       started_at = CASE WHEN e.boot_id = excluded.boot_id THEN e.started_at ELSE now() END,
       replaced_boots = CASE WHEN e.boot_id = excluded.boot_id THEN e.replaced_boots
                             ELSE (e.boot_id || e.replaced_boots)[1:32] END
 WHERE NOT excluded.boot_id = ANY (e.replaced_boots)
RETURNING started_at = now() AS is_new, state, now() AS server_time

-- name: lock_runs
-- The task first, then the run: whoever changes a run holds its task's lock.
SELECT r.id AS run_id, r.task_id, r.number, r.status, r.epoch, r.executor_id, r.boot_id, r.stop_reason,
       r.claimed_at, r.started_at, t.status AS task_status, t.deleted_at IS NOT NULL AS is_deleted, t.attempts,
       t.lost_count, t.max_attempts, t.backoff_seconds, t.max_backoff_seconds, t.retry_exit_codes,
       t.due_at, t.scheduled_at > t.created_at + interval '1 second' AS is_scheduled, r.request_id
  FROM scheduler.tasks t
  JOIN scheduler.runs r ON r.task_id = t.id
 WHERE r.id = ANY (%(run_ids)s)
 ORDER BY t.id
   FOR NO KEY UPDATE OF t, r

-- name: renew_leases
UPDATE scheduler.leases l
   SET expires_at = now() + %(lease)s, pulling = held.pulling
  FROM unnest(%(run_ids)s::uuid[], %(epochs)s::int[], %(pulling)s::bool[]) AS held(run_id, epoch, pulling)
 WHERE l.run_id = held.run_id AND l.epoch = held.epoch
   AND l.executor_id = %(executor_id)s AND l.boot_id = %(boot_id)s
RETURNING l.run_id

-- name: append_logs
INSERT INTO scheduler.run_logs (run_id, seq, stream, at, data)
SELECT chunk.run_id, chunk.seq, chunk.stream, chunk.at, chunk.data
  FROM unnest(%(run_ids)s::uuid[], %(epochs)s::int[], %(seqs)s::bigint[], %(streams)s::smallint[],
              %(times)s::timestamptz[], %(data)b::bytea[]) AS chunk(run_id, epoch, seq, stream, at, data)
  JOIN scheduler.runs r ON r.id = chunk.run_id AND r.epoch = chunk.epoch
ON CONFLICT DO NOTHING

-- name: measure_logs
SELECT run_id, max(seq) + 1 AS next_seq,
       coalesce(sum(octet_length(data)) FILTER (WHERE stream = 1), 0)::bigint AS stdout_bytes,
       coalesce(sum(octet_length(data)) FILTER (WHERE stream = 2), 0)::bigint AS stderr_bytes
  FROM scheduler.run_logs
 WHERE run_id = ANY (%(run_ids)s)
 GROUP BY run_id

-- name: name_containers
UPDATE scheduler.runs r
   SET container_id = prepared.container_id
  FROM unnest(%(run_ids)s::uuid[], %(epochs)s::int[], %(container_ids)s::text[])
       AS prepared(run_id, epoch, container_id)
 WHERE r.id = prepared.run_id AND r.epoch = prepared.epoch AND r.status IN ('claimed', 'running', 'stopping')

-- name: start_runs
WITH started AS (
    UPDATE scheduler.runs r
       -- A run that is being stopped stays so, though its container started meanwhile.
       SET status = CASE r.status WHEN 'claimed' THEN 'running' ELSE r.status END,
           started_at = least(greatest(coalesce(report.started_at, now()), r.claimed_at), now()),
           container_id = coalesce(report.container_id, r.container_id),
           image_digest = coalesce(report.image_digest, r.image_digest),
           pulled_seconds = coalesce(report.pulled_seconds, r.pulled_seconds)
      FROM unnest(%(run_ids)s::uuid[], %(epochs)s::int[], %(started_ats)s::timestamptz[],
                  %(container_ids)s::text[], %(image_digests)s::text[], %(pulled_seconds)s::float8[])
           AS report(run_id, epoch, started_at, container_id, image_digest, pulled_seconds)
     WHERE r.id = report.run_id AND r.epoch = report.epoch
       AND r.status IN ('claimed', 'stopping') AND r.started_at IS NULL
    RETURNING r.id, r.task_id, r.started_at)
UPDATE scheduler.tasks t
   SET status = 'running', started_at = started.started_at, updated_at = now()
  FROM started
 WHERE t.id = started.task_id AND t.status = 'queued'
RETURNING started.id AS run_id, t.id AS task_id, started.started_at, started.started_at AS finished_at

-- name: finish_runs
WITH ending AS (
    SELECT *
      FROM unnest(%(run_ids)s::uuid[], %(epochs)s::int[], %(run_statuses)s::text[], %(task_statuses)s::text[],
                  %(reasons)s::text[], %(delays)s::interval[], %(exit_codes)s::int[], %(error_msgs)s::text[],
                  %(task_error_msgs)s::text[], %(results)b::bytea[], %(started_ats)s::timestamptz[],
                  %(finished_ats)s::timestamptz[], %(image_digests)s::text[], %(container_ids)s::text[],
                  %(max_memory_mbs)s::int[], %(cpu_seconds)s::float8[], %(pulled_seconds)s::float8[])
           AS e(run_id, epoch, run_status, task_status, reason, delay, exit_code, error_msg, task_error_msg,
                result, started_at, finished_at, image_digest, container_id, max_memory_mb, cpu_seconds,
                pulled_seconds)),
closed AS (
    UPDATE scheduler.runs r
       SET status = e.run_status,
           reason = CASE e.run_status WHEN 'lost' THEN 'executor_lost' ELSE e.reason END,
           exit_code = e.exit_code,
           error_msg = e.error_msg,
           -- The engine's clock may be off: its times are kept between the claim and now.
           started_at = CASE WHEN r.started_at IS NULL AND e.started_at IS NULL THEN NULL
                             ELSE coalesce(r.started_at, least(greatest(e.started_at, r.claimed_at), now())) END,
           finished_at = least(greatest(coalesce(e.finished_at, now()), r.started_at, e.started_at, r.claimed_at), now()),
           image_digest = coalesce(e.image_digest, r.image_digest),
           container_id = coalesce(e.container_id, r.container_id),
           max_memory_mb = coalesce(e.max_memory_mb, r.max_memory_mb),
           cpu_seconds = coalesce(e.cpu_seconds, r.cpu_seconds),
           pulled_seconds = coalesce(e.pulled_seconds, r.pulled_seconds),
           closed_at = now()
      FROM ending e
     WHERE r.id = e.run_id AND r.epoch = e.epoch AND r.status IN ('claimed', 'running', 'stopping')
    RETURNING r.id, r.task_id, r.started_at, r.finished_at),
released AS (
    DELETE FROM scheduler.leases l USING closed WHERE l.run_id = closed.id)
UPDATE scheduler.tasks t
   SET status = e.task_status,
       -- The reason of a failure that is tried again stands at its run.
       reason = CASE e.task_status WHEN 'failed' THEN e.reason END,
       attempts = t.attempts - (e.run_status = 'lost')::int,
       lost_count = t.lost_count + (e.run_status = 'lost')::int,
       due_at = CASE e.task_status WHEN 'pending' THEN now() + e.delay ELSE t.due_at END,
       queued_at = CASE e.task_status WHEN 'pending' THEN NULL ELSE t.queued_at END,
       started_at = CASE e.task_status WHEN 'pending' THEN NULL ELSE closed.started_at END,
       finished_at = CASE e.task_status WHEN 'pending' THEN NULL ELSE closed.finished_at END,
       exit_code = CASE e.task_status WHEN 'pending' THEN NULL ELSE e.exit_code END,
       error_msg = CASE e.task_status WHEN 'pending' THEN NULL ELSE e.task_error_msg END,
       result = CASE e.task_status WHEN 'pending' THEN NULL ELSE e.result END,
       updated_at = now()
  FROM closed
  JOIN ending e ON e.run_id = closed.id
 WHERE t.id = closed.task_id AND t.status IN ('queued', 'running')
RETURNING closed.id AS run_id, t.id AS task_id, closed.started_at, closed.finished_at

-- name: claim_runs
WITH claimed AS (
    UPDATE scheduler.runs
       SET status = 'claimed', epoch = epoch + 1, claimed_at = now(),
           executor_id = %(executor_id)s, boot_id = %(boot_id)s, engine_id = %(engine_id)s
     WHERE id = ANY (%(run_ids)s) AND status = 'queued'
    RETURNING id, epoch)
INSERT INTO scheduler.leases (run_id, executor_id, boot_id, engine_id, epoch, expires_at)
SELECT id, %(executor_id)s, %(boot_id)s, %(engine_id)s, epoch, now() + %(lease)s FROM claimed
RETURNING run_id, epoch

-- name: list_leases_of_engine
-- There are never more leases than slots, but the planner takes those that have gone since the last vacuum for live
-- ones, and would read all runs that there are: OFFSET 0 and ARRAY have it look up each lease's run, here and below.
SELECT l.run_id, l.executor_id, l.boot_id, l.epoch, l.adopted, l.expires_at < now() AS is_expired,
       r.status = 'stopping' AS is_stopping, r.started_at IS NOT NULL AS was_running
  FROM scheduler.leases l
 CROSS JOIN LATERAL (SELECT status, started_at FROM scheduler.runs WHERE id = l.run_id OFFSET 0) r
 WHERE l.engine_id = %(engine_id)s

-- name: take_over_leases
-- Of an earlier boot of its own at once. Of others when they ran out, unless that is because nobody could renew:
-- the database or the scheduler itself has only just come back. Whoever asks may be faster than the first beat then.
WITH orphaned AS (
    SELECT l.run_id
      FROM scheduler.tasks t
      JOIN scheduler.runs r ON r.task_id = t.id
      JOIN scheduler.leases l ON l.run_id = r.id
     WHERE r.id = ANY (ARRAY(SELECT run_id FROM scheduler.leases WHERE engine_id = %(engine_id)s))
       AND l.engine_id = %(engine_id)s
       AND ((l.executor_id = %(executor_id)s AND l.boot_id <> %(boot_id)s)
            OR (l.expires_at < now()
                AND pg_postmaster_start_time() < now() - %(settle)s
                AND EXISTS (
                    SELECT FROM scheduler.parts
                     WHERE name = 'http' AND since < now() - %(settle)s AND seen_at > now() - %(gap)s)))
     ORDER BY t.id
       FOR NO KEY UPDATE OF t, l SKIP LOCKED),
taken AS (
    UPDATE scheduler.leases l
       SET executor_id = %(executor_id)s, boot_id = %(boot_id)s, epoch = l.epoch + 1, adopted = true,
           expires_at = now() + %(lease)s
      FROM orphaned
     WHERE l.run_id = orphaned.run_id
    RETURNING l.run_id, l.epoch)
UPDATE scheduler.runs r
   SET executor_id = %(executor_id)s, boot_id = %(boot_id)s, epoch = taken.epoch
  FROM taken
 WHERE r.id = taken.run_id AND r.status IN ('claimed', 'running', 'stopping')
RETURNING r.id

-- name: list_live_runs
SELECT id FROM scheduler.runs
 WHERE id = ANY (%(run_ids)s) AND status IN ('queued', 'claimed', 'running', 'stopping')

-- name: list_specs
SELECT t.id AS task_id, r.id AS run_id, t.user_id, r.number, t.image, t.command, t.args, t.entrypoint,
       t.environment, t.timeout_seconds, t.stop_grace_seconds, t.cpus, t.memory_mb, t.pids, t.network,
       t.scheduled_at, r.request_id
  FROM scheduler.runs r
  JOIN scheduler.tasks t ON t.id = r.task_id
 WHERE r.id = ANY (%(run_ids)s)

-- name: list_images_due_within
SELECT DISTINCT soon.image
  FROM generate_series(9, 0, -1) AS level(priority)
 CROSS JOIN LATERAL (
       SELECT image
         FROM scheduler.tasks
        WHERE status = 'pending' AND priority = level.priority AND due_at <= now() + %(ahead)s
        ORDER BY due_at
        LIMIT 100) soon
 LIMIT %(limit)s

-- name: beat
-- Many processes beat for one part; the row is written once in a while, and says since when there was no gap.
INSERT INTO scheduler.parts AS p (name) VALUES (%(name)s)
ON CONFLICT (name) DO UPDATE
   SET seen_at = now(), since = CASE WHEN p.seen_at < now() - %(gap)s THEN now() ELSE p.since END
 WHERE p.seen_at < now() - %(every)s

-- name: list_parts
SELECT name, since, seen_at FROM scheduler.parts ORDER BY name

-- name: lock_lost_runs
-- Engines that were silent for too long, counted only while the scheduler could have heard them. A task that
-- says hold is waited for, unless nobody wants it any more: then no other run of it will follow.
SELECT r.id AS run_id, r.task_id, r.number, r.status, r.epoch, r.executor_id, r.boot_id, r.stop_reason,
       r.claimed_at, r.started_at, t.status AS task_status, t.deleted_at IS NOT NULL AS is_deleted, t.attempts,
       t.lost_count, t.max_attempts, t.backoff_seconds, t.max_backoff_seconds, t.retry_exit_codes,
       t.due_at, t.scheduled_at > t.created_at + interval '1 second' AS is_scheduled, r.request_id
  FROM scheduler.tasks t
  JOIN scheduler.runs r ON r.task_id = t.id
  JOIN scheduler.leases l ON l.run_id = r.id
 WHERE r.id = ANY (ARRAY(SELECT run_id FROM scheduler.leases WHERE expires_at < now()))
   AND l.expires_at < now() - %(silence)s
   AND NOT EXISTS (
       SELECT FROM scheduler.executors e
        WHERE e.engine_id = l.engine_id AND e.last_seen_at > now() - %(silence)s)
   AND (t.on_executor_lost = 'retry' OR r.stop_requested_at IS NOT NULL OR t.deleted_at IS NOT NULL)
   AND pg_postmaster_start_time() < now() - %(silence)s
   AND EXISTS (
       SELECT FROM scheduler.parts
        WHERE name = 'http' AND since < now() - %(silence)s AND seen_at > now() - %(gap)s)
 ORDER BY t.id
 LIMIT %(limit)s
   FOR NO KEY UPDATE OF t, r, l SKIP LOCKED
