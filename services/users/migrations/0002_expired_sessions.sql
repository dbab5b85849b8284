SET LOCAL lock_timeout = '5s';

-- Each login clears away some sessions that have ended by themselves, whosever they were.
CREATE INDEX sessions_by_expiry ON users.sessions (expires_at);
