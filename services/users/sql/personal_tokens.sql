-- name: insert_personal_token
INSERT INTO users.personal_tokens (id, account_id, name, token_hash, expires_at)
VALUES (%(id)s, %(account_id)s, %(name)s, %(token_hash)s, %(expires_at)s)
RETURNING id, account_id, name, created_at, expires_at, last_used_at

-- name: list_personal_tokens
SELECT id, account_id, name, created_at, expires_at, last_used_at
  FROM users.personal_tokens
 WHERE account_id = %(account_id)s
   AND (%(cursor_id)s::uuid IS NULL OR (created_at, id) < (%(cursor_at)s, %(cursor_id)s))
 ORDER BY created_at DESC, id DESC
 LIMIT %(limit)s

-- name: find_personal_token
SELECT id, account_id, name, created_at, expires_at, last_used_at
  FROM users.personal_tokens
 WHERE token_hash = %(token_hash)s AND (expires_at IS NULL OR expires_at > now())

-- name: touch_personal_token
-- Once a minute is exact enough, and spares a write on each exchange.
UPDATE users.personal_tokens SET last_used_at = now()
 WHERE id = %(id)s AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')

-- name: delete_personal_token
DELETE FROM users.personal_tokens WHERE id = %(id)s AND account_id = %(account_id)s

-- name: delete_personal_tokens
DELETE FROM users.personal_tokens WHERE account_id = %(account_id)s
