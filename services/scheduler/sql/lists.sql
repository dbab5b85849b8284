-- name: weigh_terms
-- How many tasks each term finds, counted no further than a limit. A prefix stands for every term that begins so.
SELECT wanted.term, wanted.is_prefix,
       (SELECT count(*)
          FROM (SELECT
                  FROM scheduler.task_terms
                 WHERE (%(user_id)s::uuid IS NULL OR user_id = %(user_id)s)
                   AND term = wanted.term AND NOT wanted.is_prefix
                 LIMIT %(limit)s) AS exact)
     + (SELECT count(*)
          FROM (SELECT
                  FROM scheduler.task_terms
                 WHERE (%(user_id)s::uuid IS NULL OR user_id = %(user_id)s)
                   -- With the last character there is, what begins so is a range.
                   AND term >= wanted.term AND term < wanted.term || U&'\+10FFFF' AND wanted.is_prefix
                 LIMIT %(limit)s) AS prefixed) AS weight
  FROM unnest(%(terms)s::text[], %(are_prefixes)s::bool[]) AS wanted(term, is_prefix)

-- name: weigh_statuses
SELECT count(*) AS weight
  FROM (SELECT
          FROM unnest(%(statuses)s::text[]) AS wanted(status)
         CROSS JOIN LATERAL (
               SELECT
                 FROM scheduler.tasks
                WHERE (%(user_id)s::uuid IS NULL OR user_id = %(user_id)s) AND status = wanted.status
                LIMIT %(limit)s) AS one
         LIMIT %(limit)s) AS found

-- name: list_terms_with_prefix
-- From each term to the next one, past however many tasks have it.
WITH RECURSIVE next(term) AS (
    (SELECT term
       FROM scheduler.task_terms
      WHERE (%(user_id)s::uuid IS NULL OR user_id = %(user_id)s)
        AND term >= %(prefix)s AND term < %(prefix)s || U&'\+10FFFF'
      ORDER BY term
      LIMIT 1)
    UNION ALL
    SELECT (SELECT term
              FROM scheduler.task_terms
             WHERE (%(user_id)s::uuid IS NULL OR user_id = %(user_id)s)
               AND term > next.term AND term < %(prefix)s || U&'\+10FFFF'
             ORDER BY term
             LIMIT 1)
      FROM next
     WHERE next.term IS NOT NULL)
SELECT term FROM next WHERE term IS NOT NULL LIMIT %(limit)s

-- name: find_page_by_statuses
-- The newest of each status, merged. Every read is in an index's order and stops at the limit; what else is asked
-- for is looked up in an index too, a row at a time (a scalar subquery is never turned into a join). Tasks that
-- were deleted while they ran are left to find_tasks.
SELECT page.id, page.created_at
  FROM unnest(%(statuses)s::text[]) AS wanted(status)
 CROSS JOIN LATERAL (
       SELECT id, created_at
         FROM scheduler.tasks t
        WHERE (%(user_id)s::uuid IS NULL OR user_id = %(user_id)s)
          AND status = wanted.status
          AND created_at >= %(since)s
          AND (created_at, id) < (%(before_time)s, %(before_id)s)
          AND (%(others)s::text[] IS NULL OR cardinality(%(others)s::text[]) = (
               SELECT count(*)
                 FROM scheduler.task_terms
                WHERE user_id = t.user_id AND term = ANY (%(others)s)
                  AND created_at = t.created_at AND task_id = t.id))
          AND (%(name)s::text IS NULL OR starts_with(name, %(name)s))
        ORDER BY created_at DESC, id DESC
        LIMIT %(limit)s) AS page
 ORDER BY page.created_at DESC, page.id DESC
 LIMIT %(limit)s

-- name: find_page_by_terms
-- The same, by what any of some labels, schedules or names finds.
SELECT page.id, page.created_at
  FROM unnest(%(terms)s::text[]) AS wanted(term)
 CROSS JOIN LATERAL (
       SELECT task_id AS id, created_at
         FROM scheduler.task_terms found
        WHERE (%(user_id)s::uuid IS NULL OR user_id = %(user_id)s)
          AND term = wanted.term
          AND created_at >= %(since)s
          AND (created_at, task_id) < (%(before_time)s, %(before_id)s)
          AND (%(others)s::text[] IS NULL OR cardinality(%(others)s::text[]) = (
               SELECT count(*)
                 FROM scheduler.task_terms
                WHERE user_id = found.user_id AND term = ANY (%(others)s)
                  AND created_at = found.created_at AND task_id = found.task_id))
          AND (%(filtered_statuses)s::text[] IS NULL OR 1 = (
               SELECT count(*)
                 FROM scheduler.tasks
                WHERE user_id = found.user_id AND status = ANY (%(filtered_statuses)s)
                  AND created_at = found.created_at AND id = found.task_id))
          AND (%(name)s::text IS NULL OR (
               SELECT starts_with(name, %(name)s) FROM scheduler.tasks WHERE id = found.task_id))
        ORDER BY created_at DESC, task_id DESC
        LIMIT %(limit)s) AS page
 ORDER BY page.created_at DESC, page.id DESC
 LIMIT %(limit)s

-- name: find_page_by_prefix
-- For a prefix of many different names: whatever it finds, sorted.
SELECT task_id AS id, created_at
  FROM scheduler.task_terms found
 WHERE (%(user_id)s::uuid IS NULL OR user_id = %(user_id)s)
   AND term >= %(prefix)s AND term < %(prefix)s || U&'\+10FFFF'
   AND created_at >= %(since)s
   AND (created_at, task_id) < (%(before_time)s, %(before_id)s)
   AND (%(others)s::text[] IS NULL OR cardinality(%(others)s::text[]) = (
        SELECT count(*)
          FROM scheduler.task_terms
         WHERE user_id = found.user_id AND term = ANY (%(others)s)
           AND created_at = found.created_at AND task_id = found.task_id))
   AND (%(filtered_statuses)s::text[] IS NULL OR 1 = (
        SELECT count(*)
          FROM scheduler.tasks
         WHERE user_id = found.user_id AND status = ANY (%(filtered_statuses)s)
           AND created_at = found.created_at AND id = found.task_id))
 ORDER BY created_at DESC, task_id DESC
 LIMIT %(limit)s

-- name: count_fitting_tasks
-- How many of them, in their order, have definitions and results of so many bytes together.
SELECT count(*) AS count
  FROM (SELECT sum(octet_length(t.environment::text) + octet_length(t.args::text)
                   + coalesce(octet_length(t.result), 0)) OVER (ORDER BY wanted.position) AS total
          FROM unnest(%(task_ids)s::uuid[]) WITH ORDINALITY AS wanted(id, position)
          LEFT JOIN scheduler.tasks t ON t.id = wanted.id) AS summed
 WHERE total IS NULL OR total <= %(most_bytes)s

-- name: find_tasks
SELECT t.*, r.status AS run_status, r.published_at IS NOT NULL AS run_published, l.pulling AS run_pulling
  FROM unnest(%(task_ids)s::uuid[]) WITH ORDINALITY AS wanted(id, position)
  JOIN scheduler.tasks t ON t.id = wanted.id AND t.deleted_at IS NULL
  LEFT JOIN scheduler.runs r ON r.task_id = t.id AND r.status IN ('queued', 'claimed', 'running', 'stopping')
  LEFT JOIN scheduler.leases l ON l.run_id = r.id
 ORDER BY wanted.position

-- name: count_tasks
SELECT status, greatest(sum(count), 0)::bigint AS count
  FROM (SELECT status, count FROM scheduler.task_counts
         WHERE (%(user_id)s::uuid IS NULL OR user_id = %(user_id)s)
        UNION ALL
        SELECT status, change FROM scheduler.task_count_changes
         WHERE (%(user_id)s::uuid IS NULL OR user_id = %(user_id)s)) AS counted(status, count)
 GROUP BY status

-- name: add_up_task_counts
-- In an order, so that two sweeps don't wait for each other in turn.
WITH taken AS (
    DELETE FROM scheduler.task_count_changes
     WHERE ctid = ANY (ARRAY (
           SELECT ctid FROM scheduler.task_count_changes LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
    RETURNING user_id, status, change),
summed AS (
    SELECT user_id, status, sum(change) AS change FROM taken GROUP BY user_id, status ORDER BY user_id, status)
INSERT INTO scheduler.task_counts AS c (user_id, status, count)
SELECT user_id, status, change FROM summed WHERE change <> 0
ON CONFLICT (user_id, status) DO UPDATE SET count = c.count + excluded.count
