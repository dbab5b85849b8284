"""Transactions that survive a lost connection, and named queries."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from libs.common.postgres import Connection, DatabaseSilent, Pool, in_transaction, load_queries, open_pool, ping
from tests.polling import wait_until


@pytest.fixture
def pool(make_database) -> Iterator[Pool]:
    pool = open_pool(make_database().dsn, name="postgres-test", max_size=3)
    with pool.connection() as connection:
        connection.execute("CREATE TABLE things (id int PRIMARY KEY)")
    yield pool
    pool.close()


def count(pool: Pool) -> int:
    with pool.connection() as connection:
        row = connection.execute("SELECT count(*) FROM things").fetchone()
    assert row is not None
    return int(row["count"])


def insert(connection: Connection, number: int = 1) -> None:
    connection.execute("INSERT INTO things VALUES (%s)", (number,))


def _is_gone(connection: Connection, backend_pid: int) -> bool:
    return connection.execute("SELECT FROM pg_stat_activity WHERE pid = %s", (backend_pid,)).rowcount == 0


@pytest.mark.component
def test_what_was_done_is_committed_and_the_result_returned(pool: Pool):
    def work(connection: Connection) -> str:
        insert(connection)
        return "result"

    assert in_transaction(pool, work) == "result"
    assert count(pool) == 1


@pytest.mark.component
def test_leaving_by_an_exception_rolls_back(pool: Pool):
    def work(connection: Connection) -> None:
        insert(connection)
        raise KeyError("no")

    with pytest.raises(KeyError):
        in_transaction(pool, work)

    assert count(pool) == 0


@pytest.mark.component
def test_work_on_a_broken_connection_runs_again_on_another(pool: Pool):
    tries: list[int] = []

    def work(connection: Connection) -> None:
        tries.append(connection.info.backend_pid)
        insert(connection)
        if len(tries) == 1:
            with pool.connection() as other:
                other.execute("SELECT pg_terminate_backend(%s)", (tries[0],))
            connection.execute("SELECT 1")

    in_transaction(pool, work)

    assert len(set(tries)) == 2
    assert count(pool) == 1


@pytest.mark.component
def test_work_that_slept_in_its_transaction_lost_its_locks_and_runs_again(pool: Pool):
    tries: list[int] = []

    def work(connection: Connection) -> None:
        tries.append(connection.info.backend_pid)
        connection.execute("SET LOCAL idle_in_transaction_session_timeout = '50ms'")
        insert(connection)
        if len(tries) == 1:
            with pool.connection() as other:
                wait_until(lambda: _is_gone(other, tries[0]), what="the server ended the session")

    in_transaction(pool, work)

    assert len(set(tries)) == 2
    assert count(pool) == 1


@pytest.mark.component
def test_every_connection_bounds_how_long_its_transaction_may_sleep(pool: Pool):
    with pool.connection() as connection:
        row = connection.execute("SHOW idle_in_transaction_session_timeout").fetchone()

    assert row == {"idle_in_transaction_session_timeout": "10s"}


@pytest.mark.component
def test_work_that_keeps_breaking_its_connection_is_given_up(pool: Pool):
    tries = 0

    def work(connection: Connection) -> None:
        nonlocal tries
        tries += 1
        connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(psycopg.OperationalError):
        in_transaction(pool, work, attempts=3)

    assert tries == 3


@pytest.mark.component
def test_other_errors_are_not_tried_again(pool: Pool):
    tries = 0

    def work(connection: Connection) -> None:
        nonlocal tries
        tries += 1
        insert(connection)
        insert(connection)

    with pytest.raises(psycopg.errors.UniqueViolation):
        in_transaction(pool, work)

    assert tries == 1


@pytest.mark.component
def test_connections_that_died_while_idle_are_not_handed_out(pool: Pool):
    with pool.connection() as one, pool.connection() as two:
        pids = [one.info.backend_pid, two.info.backend_pid]
    with pool.connection() as third:
        pids = [pid for pid in pids if pid != third.info.backend_pid]
        third.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", (pids,))

    for _ in range(4):
        with pool.connection() as connection:
            connection.execute("SELECT 1")


@pytest.mark.component
def test_rows_are_dicts_and_times_are_in_utc(pool: Pool):
    with pool.connection() as connection:
        row = connection.execute("SELECT current_setting('timezone') AS zone, now() AS now").fetchone()

    assert row is not None
    assert row["zone"] == "UTC"
    assert row["now"].tzinfo is not None


@pytest.mark.component
def test_waiting_for_a_connection_ends(make_database):
    pool = open_pool(make_database().dsn, name="postgres-test", max_size=1, wait_seconds=0.1)

    with pool.connection(timeout=5), pytest.raises(PoolTimeout):
        in_transaction(pool, insert)

    pool.close()


@pytest.mark.component
def test_a_server_that_is_silent_is_given_up_and_not_asked_again(make_database):
    pool = open_pool(make_database().dsn, name="postgres-test", max_size=2, statement_seconds=0.1)
    tries = 0

    def work(connection: Connection) -> None:
        nonlocal tries
        tries += 1
        # As a frozen server, which doesn't keep its own time limits either.
        connection.execute("SET LOCAL statement_timeout = 0")
        connection.execute("SELECT pg_sleep(60)")

    with pytest.raises(DatabaseSilent):
        in_transaction(pool, work)

    assert tries == 1
    ping(pool)
    pool.close()


@pytest.mark.component
def test_a_statement_that_takes_too_long_is_ended_by_the_server(make_database):
    pool = open_pool(make_database().dsn, name="postgres-test", max_size=1, statement_seconds=0.2)
    tries = 0

    def work(connection: Connection) -> None:
        nonlocal tries
        tries += 1
        connection.execute("SELECT pg_sleep(60)")

    with pytest.raises(psycopg.errors.QueryCanceled):
        in_transaction(pool, work)

    assert tries == 1
    pool.close()


@pytest.mark.component
def test_waiting_for_a_server_that_is_away_ends():
    pool = open_pool("host=127.0.0.1 port=1 dbname=none", name="nowhere", max_size=1, wait_seconds=0.1)

    with pytest.raises(PoolTimeout):
        ping(pool)

    pool.close()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`package("one.sql", text)`: an importable package with that file in its sql folder; returns its name."""
    name = f"package_{uuid.uuid4().hex}"
    (tmp_path / name / "sql").mkdir(parents=True)
    (tmp_path / name / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(file: str, text: str) -> str:
        (tmp_path / name / "sql" / file).write_text(text)
        return name

    yield write

    sys.modules.pop(name, None)


def test_queries_are_read_by_name_from_all_files(package: Any):
    package("one.sql", "-- name: first\nSELECT 1;\n\n-- name: second\n-- Why it is so.\nSELECT 2\n")
    name = package("two.sql", "-- name: third\nSELECT 3\n")
    package("notes.txt", "-- name: fourth\nSELECT 4\n")

    queries = load_queries(name)

    assert dict(queries) == {"first": b"SELECT 1;", "second": b"-- Why it is so.\nSELECT 2", "third": b"SELECT 3"}
    with pytest.raises(KeyError):
        queries["fourth"]


def test_two_queries_of_one_name_are_refused(package: Any):
    package("one.sql", "-- name: same\nSELECT 1\n")
    name = package("two.sql", "-- name: same\nSELECT 2\n")

    with pytest.raises(ValueError, match="two queries named same"):
        load_queries(name)
