-- name: find_first_answer
SELECT fingerprint, status, location, body
  FROM scheduler.idempotency_keys
 WHERE user_id = %(user_id)s AND key = %(key)s AND created_at > now() - %(kept)s

-- name: take_idempotency_key
-- Waits for a request with the same key that is under way. No row when that one was done; one that failed left none.
INSERT INTO scheduler.idempotency_keys AS k (user_id, key, fingerprint)
VALUES (%(user_id)s, %(key)s, %(fingerprint)s)
ON CONFLICT (user_id, key) DO UPDATE
   SET fingerprint = excluded.fingerprint, created_at = now(), status = NULL, location = NULL, body = NULL
 WHERE k.created_at <= now() - %(kept)s
RETURNING true AS is_taken

-- name: keep_first_answer
UPDATE scheduler.idempotency_keys
   SET status = %(status)s, location = %(location)s, body = %(body)b
 WHERE user_id = %(user_id)s AND key = %(key)s

-- name: forget_idempotency_keys
DELETE FROM scheduler.idempotency_keys
 WHERE (user_id, key) IN (
       SELECT user_id, key FROM scheduler.idempotency_keys
        WHERE created_at <= now() - %(kept)s
        ORDER BY created_at
        LIMIT %(limit)s
          FOR UPDATE SKIP LOCKED)
