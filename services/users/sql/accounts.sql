-- name: insert_account
INSERT INTO users.accounts (id, name, email, email_key, password_hash, roles)
VALUES (%(id)s, %(name)s, %(email)s, %(email_key)s, %(password_hash)s, %(roles)s)
RETURNING *

-- name: find_account
SELECT * FROM users.accounts WHERE id = %(id)s

-- name: find_account_by_email
SELECT * FROM users.accounts WHERE email_key = %(email_key)s

-- name: lock_accounts
-- In the order of the ids, so that two transactions never wait for each other.
SELECT * FROM users.accounts WHERE id = ANY (%(ids)s) ORDER BY id FOR UPDATE

-- name: list_accounts
SELECT * FROM users.accounts
 WHERE %(cursor_id)s::uuid IS NULL OR (created_at, id) < (%(cursor_at)s, %(cursor_id)s)
 ORDER BY created_at DESC, id DESC
 LIMIT %(limit)s

-- name: update_account
UPDATE users.accounts
   SET name = %(name)s, email = %(email)s, email_key = %(email_key)s, password_hash = %(password_hash)s,
       roles = %(roles)s, enabled = %(enabled)s, version = %(version)s, updated_at = now()
 WHERE id = %(id)s
RETURNING *

-- name: delete_account
DELETE FROM users.accounts WHERE id = %(id)s

-- name: lock_admins
-- One change that may cost an admin at a time: two that look harmless alone could leave none.
SELECT pg_advisory_xact_lock(hashtext('users.admins'))

-- name: other_enabled_admin_exists
SELECT EXISTS (
    SELECT 1 FROM users.accounts WHERE enabled AND roles @> ARRAY['admin'] AND id <> %(id)s
) AS exists

-- name: insert_deletion
INSERT INTO users.deletions (user_id) VALUES (%(user_id)s)

-- name: list_deletions
SELECT user_id, deleted_at FROM users.deletions WHERE deleted_at >= %(since)s ORDER BY deleted_at
