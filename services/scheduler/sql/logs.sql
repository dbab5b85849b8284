-- name: find_run_of_attempt
SELECT id FROM scheduler.runs
 WHERE task_id = %(task_id)s AND (%(number)s::int IS NULL OR number = %(number)s)
 ORDER BY number DESC
 LIMIT 1

-- name: list_log_page
-- The next chunks behind one, while they fit into the budget, but at least one.
SELECT seq, stream, at, data
  FROM (SELECT seq, stream, at, data, sum(octet_length(data)) OVER (ORDER BY seq) - octet_length(data) AS bytes_before
          FROM (SELECT seq, stream, at, data
                  FROM scheduler.run_logs
                 WHERE run_id = %(run_id)s AND seq > %(after)s AND stream = ANY (%(streams)s::smallint[])
                 ORDER BY seq
                 LIMIT %(limit)s) following) page
 WHERE bytes_before < %(budget)s
 ORDER BY seq

-- name: list_log_page_backwards
-- The same towards the beginning, the last chunk first.
SELECT seq, stream, at, data
  FROM (SELECT seq, stream, at, data,
               sum(octet_length(data)) OVER (ORDER BY seq DESC) - octet_length(data) AS bytes_before
          FROM (SELECT seq, stream, at, data
                  FROM scheduler.run_logs
                 WHERE run_id = %(run_id)s AND seq < %(before)s AND stream = ANY (%(streams)s::smallint[])
                 ORDER BY seq DESC
                 LIMIT %(limit)s) preceding) page
 WHERE bytes_before < %(budget)s
 ORDER BY seq DESC

-- name: list_log_ends
-- The last bytes of each stream up to a chunk: there a character may be cut, whose rest is in the next one.
SELECT ends.stream, preceding.data
  FROM unnest(%(streams)s::smallint[]) AS ends(stream)
 CROSS JOIN LATERAL (
       SELECT seq, substring(data FROM greatest(octet_length(data) - 2, 1)) AS data
         FROM scheduler.run_logs
        WHERE run_id = %(run_id)s AND stream = ends.stream AND seq <= %(until)s
        ORDER BY seq DESC
        LIMIT 3) preceding
 ORDER BY ends.stream, preceding.seq

-- name: read_progress
-- How the task stands, and the first of its runs from a number on.
SELECT t.status AS task_status, t.reason AS task_reason, t.exit_code AS task_exit_code,
       r.id AS run_id, r.number, r.status AS run_status, r.reason AS run_reason, r.exit_code AS run_exit_code
  FROM scheduler.tasks t
  LEFT JOIN LATERAL (
       SELECT id, number, status, reason, exit_code
         FROM scheduler.runs
        WHERE task_id = t.id AND number >= %(number)s
        ORDER BY number
        LIMIT 1) r ON true
 WHERE t.id = %(task_id)s AND t.deleted_at IS NULL

-- name: find_last_attempt
SELECT max(number) AS number FROM scheduler.runs WHERE task_id = %(task_id)s
