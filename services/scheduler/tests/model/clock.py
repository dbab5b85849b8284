"""A database whose time stands still until it is told to move on.

The queries stay as they are: their unqualified `now()` finds a function of this schema before PostgreSQL's own.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg
from psycopg import sql

from libs.common.postgres import Pool

_SET_UP = """
CREATE SCHEMA model;
CREATE TABLE model.clock (at timestamptz NOT NULL, database_started_at timestamptz NOT NULL);
INSERT INTO model.clock VALUES (now(), now());
CREATE FUNCTION model.now() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT at FROM model.clock';
CREATE FUNCTION model.clock_timestamp() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT at FROM model.clock';
CREATE FUNCTION model.pg_postmaster_start_time() RETURNS timestamptz LANGUAGE sql STABLE
    AS 'SELECT database_started_at FROM model.clock';
GRANT USAGE ON SCHEMA model TO scheduler;
GRANT ALL ON model.clock TO scheduler;
DO $$
DECLARE
    found record;
BEGIN
    FOR found IN SELECT table_name, column_name FROM information_schema.columns
                  WHERE table_schema = 'scheduler' AND column_default = 'now()' LOOP
        EXECUTE format('ALTER TABLE scheduler.%I ALTER %I SET DEFAULT model.now()',
                       found.table_name, found.column_name);
    END LOOP;
END $$;
"""
_SEARCH_PATH = "ALTER ROLE scheduler IN DATABASE {} SET search_path = model, pg_catalog, public"

LONG = timedelta(hours=1)


def install_clock(owner_dsn: str, database: str) -> None:
    """For connections of the scheduler's role that are opened from now on."""
    with psycopg.connect(owner_dsn, autocommit=True) as connection:
        connection.execute(_SET_UP)
        connection.execute(sql.SQL(_SEARCH_PATH).format(sql.Identifier(database)))


class Clock:
    """The time of everybody: the database's, the loops' and the executors'."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        # A task's date is compared with the real time once: it must not lie behind.
        self.start = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=1)
        self.now = self.start
        self._write(database_started_at=self.now - LONG)

    def monotonic(self) -> float:
        return (self.now - self.start).total_seconds()

    def advance(self, by: timedelta) -> None:
        self.now += by
        self._write()

    def restart_database(self) -> None:
        self._write(database_started_at=self.now)

    def _write(self, *, database_started_at: datetime | None = None) -> None:
        with self._pool.connection() as connection:
            connection.execute(
                "UPDATE model.clock SET at = %s, database_started_at = coalesce(%s, database_started_at)",
                (self.now, database_started_at),
            )
