-- name: insert_session
INSERT INTO users.sessions (id, account_id, expires_at) VALUES (%(id)s, %(account_id)s, %(expires_at)s)

-- name: extend_session
UPDATE users.sessions SET expires_at = %(expires_at)s WHERE id = %(id)s

-- name: delete_session
DELETE FROM users.sessions WHERE id = %(id)s AND account_id = %(account_id)s

-- name: delete_sessions
DELETE FROM users.sessions WHERE account_id = %(account_id)s

-- name: delete_expired_sessions
-- Of whomever, a few at a time; what another login is deleting is left to it.
DELETE FROM users.sessions
 WHERE id IN (SELECT id FROM users.sessions
               WHERE expires_at <= now()
               ORDER BY expires_at
               LIMIT %(limit)s
                 FOR UPDATE SKIP LOCKED)

-- name: insert_refresh_token
INSERT INTO users.refresh_tokens (token_hash, session_id, expires_at)
VALUES (%(token_hash)s, %(session_id)s, %(expires_at)s)

-- name: find_refresh_token
SELECT sessions.account_id, refresh_tokens.session_id
  FROM users.refresh_tokens JOIN users.sessions ON sessions.id = refresh_tokens.session_id
 WHERE token_hash = %(token_hash)s AND refresh_tokens.expires_at > now()

-- name: use_refresh_token
UPDATE users.refresh_tokens SET used_at = now()
 WHERE token_hash = %(token_hash)s AND used_at IS NULL AND expires_at > now()
RETURNING session_id

-- name: delete_expired_refresh_tokens
DELETE FROM users.refresh_tokens WHERE session_id = %(session_id)s AND expires_at <= now()

-- name: session_is_active
-- A session id is that of a login or of a personal access token.
SELECT EXISTS (
    SELECT 1 FROM users.accounts
     WHERE id = %(account_id)s AND enabled AND version = %(version)s
       AND (EXISTS (SELECT 1 FROM users.sessions
                     WHERE id = %(session_id)s AND account_id = accounts.id AND expires_at > now())
         OR EXISTS (SELECT 1 FROM users.personal_tokens
                     WHERE id = %(session_id)s AND account_id = accounts.id
                       AND (expires_at IS NULL OR expires_at > now())))
) AS active
