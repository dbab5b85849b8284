SET LOCAL lock_timeout = '5s';

-- What is stored of a user. email_key is the email as it is compared; version is raised to end older tokens.
CREATE TABLE users.accounts (
    id            uuid PRIMARY KEY,
    name          text NOT NULL,
    email         text NOT NULL,
    email_key     text NOT NULL,
    password_hash text NOT NULL,
    roles         text[] NOT NULL,
    enabled       boolean NOT NULL DEFAULT true,
    version       integer NOT NULL DEFAULT 1,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT accounts_email_key UNIQUE (email_key),
    CONSTRAINT accounts_name_length CHECK (char_length(name) BETWEEN 1 AND 100),
    CONSTRAINT accounts_email_length CHECK (char_length(email) BETWEEN 3 AND 254),
    CONSTRAINT accounts_roles_known CHECK (cardinality(roles) > 0 AND roles <@ ARRAY['user', 'admin'])
);
CREATE INDEX accounts_newest ON users.accounts (created_at DESC, id DESC);
CREATE INDEX accounts_enabled_admins ON users.accounts (id) WHERE enabled AND roles @> ARRAY['admin'];

-- A login. Ending it means deleting it, and its refresh tokens with it.
CREATE TABLE users.sessions (
    id         uuid PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES users.accounts ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
);
CREATE INDEX sessions_of_account ON users.sessions (account_id);

-- A session's refresh tokens, one after the other. The used ones stay, to notice when one is used again.
CREATE TABLE users.refresh_tokens (
    token_hash bytea PRIMARY KEY,
    session_id uuid NOT NULL REFERENCES users.sessions ON DELETE CASCADE,
    expires_at timestamptz NOT NULL,
    used_at    timestamptz
);
CREATE INDEX refresh_tokens_of_session ON users.refresh_tokens (session_id);

CREATE TABLE users.personal_tokens (
    id           uuid PRIMARY KEY,
    account_id   uuid NOT NULL REFERENCES users.accounts ON DELETE CASCADE,
    name         text NOT NULL,
    token_hash   bytea NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz,
    last_used_at timestamptz,
    CONSTRAINT personal_tokens_hash_key UNIQUE (token_hash),
    CONSTRAINT personal_tokens_name_length CHECK (char_length(name) BETWEEN 1 AND 100)
);
CREATE INDEX personal_tokens_of_account ON users.personal_tokens (account_id, created_at DESC, id DESC);

-- Who was deleted, for the services that keep something of theirs.
CREATE TABLE users.deletions (
    user_id    uuid PRIMARY KEY,
    deleted_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX deletions_by_time ON users.deletions (deleted_at);
