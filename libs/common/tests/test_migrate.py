"""Migrations: in order, once, each as its own schema's role, also when several start at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from libs.common import migrate as module
from libs.common.config import Secret
from libs.common.migrate import Migration, MigrationError, _decide_missing, migrate, read_migrations

# A schema of these tests' own: roles belong to the whole server, and others test with theirs at the same time.
SERVICE = "migrate_test"
PASSWORD = Secret("a password with ' and \\ in it")

ONE = Migration("0001_one.sql", "CREATE TABLE migrate_test.one (id int PRIMARY KEY);")
TWO = Migration(
    "0002_two.sql", "ALTER TABLE migrate_test.one ADD COLUMN name text; INSERT INTO migrate_test.one VALUES (1);"
)


def test_what_is_recorded_is_not_missing():
    assert _decide_missing([ONE, TWO], {}) == [ONE, TWO]
    assert _decide_missing([ONE, TWO], {ONE.name: ONE.checksum}) == [TWO]
    assert _decide_missing([ONE, TWO], {ONE.name: ONE.checksum, TWO.name: TWO.checksum}) == []


def test_a_changed_file_is_refused():
    with pytest.raises(MigrationError, match="was changed after"):
        _decide_missing([ONE], {ONE.name: "another checksum"})


def test_what_a_newer_release_has_applied_is_left_alone():
    assert _decide_missing([ONE], {ONE.name: ONE.checksum, "0009_later.sql": "x"}) == []


@pytest.mark.parametrize("service", ["users", "scheduler"])
def test_migrations_are_numbered_without_gaps_and_bound_their_waits(service: str):
    migrations = read_migrations(service)

    assert [int(migration.name[:4]) for migration in migrations] == list(range(1, len(migrations) + 1))
    assert all("lock_timeout" in migration.text for migration in migrations)


Files = Callable[..., None]


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Files:
    """`files(ONE, TWO)` are the service's migrations from now on."""

    def set_files(*migrations: Migration) -> None:
        monkeypatch.setattr(module, "read_migrations", lambda _service: list(migrations))

    return set_files


@pytest.fixture
def dsn(make_database: Callable[[], Any]) -> str:
    return str(make_database().owner_dsn)


def run(dsn: str) -> list[str]:
    return migrate(dsn, service=SERVICE, password=PASSWORD)


def ask(dsn: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(query).fetchall()


@pytest.mark.component
def test_what_is_missing_is_applied_in_order_and_once(dsn: str, files: Files):
    files(ONE)
    first = run(dsn)
    files(ONE, TWO)
    second, third = run(dsn), run(dsn)

    assert (first, second, third) == ([ONE.name], [TWO.name], [])
    assert ask(dsn, "SELECT id, name FROM migrate_test.one") == [(1, None)]
    assert ask(dsn, "SELECT name, checksum FROM migrate_test.schema_migrations ORDER BY name") == [
        (ONE.name, ONE.checksum),
        (TWO.name, TWO.checksum),
    ]


@pytest.mark.component
def test_a_file_that_fails_leaves_nothing_and_the_ones_before_it_stay(dsn: str, files: Files):
    files(ONE, Migration("0002_bad.sql", "CREATE TABLE migrate_test.two (id int); SELECT 1/0;"))
    with pytest.raises(psycopg.errors.DivisionByZero):
        run(dsn)

    files(ONE, TWO)
    assert run(dsn) == [TWO.name]
    assert ask(dsn, "SELECT to_regclass('migrate_test.two')") == [(None,)]


@pytest.mark.component
def test_a_file_changed_after_it_was_applied_stops_everything(dsn: str, files: Files):
    files(ONE)
    run(dsn)

    files(Migration(ONE.name, ONE.text + " -- changed"), TWO)

    with pytest.raises(MigrationError, match=ONE.name):
        run(dsn)
    assert ask(dsn, "SELECT count(*) FROM migrate_test.schema_migrations") == [(1,)]


@pytest.mark.component
def test_several_at_once_apply_each_file_once(dsn: str, files: Files):
    files(ONE, TWO)
    barrier = threading.Barrier(4)

    def start() -> list[str]:
        barrier.wait()
        return run(dsn)

    with ThreadPoolExecutor(4) as threads:
        applied = [future.result() for future in [threads.submit(start) for _ in range(4)]]

    assert sorted(applied, key=len) == [[], [], [], [ONE.name, TWO.name]]


@pytest.mark.component
def test_the_role_logs_in_with_its_password_and_owns_only_its_schema(dsn: str, files: Files):
    files(ONE)
    run(dsn)
    ask_as_owner = ask(
        dsn, "SELECT tableowner FROM pg_tables WHERE schemaname = 'migrate_test' AND tablename = 'one'"
    )
    own = make_conninfo(dsn, user=SERVICE, password=PASSWORD.reveal())

    assert ask_as_owner == [(SERVICE,)]
    assert ask(own, "SELECT count(*) FROM migrate_test.one") == [(0,)]
    for forbidden in ("CREATE SCHEMA other", "CREATE TABLE public.mine (id int)", "SELECT * FROM pg_authid"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            ask(own, forbidden)


@pytest.mark.component
def test_the_password_changes_with_the_setting(dsn: str, files: Files):
    files(ONE)
    run(dsn)

    migrate(dsn, service=SERVICE, password=Secret("another one"))

    with pytest.raises(psycopg.OperationalError):
        ask(make_conninfo(dsn, user=SERVICE, password=PASSWORD.reveal()), "SELECT 1")
    assert ask(make_conninfo(dsn, user=SERVICE, password="another one"), "SELECT 1") == [(1,)]


@pytest.mark.component
def test_the_command_migrates_and_says_what_is_wrong(dsn: str, files: Files, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["migrate", SERVICE])
    monkeypatch.setattr(module, "configure_logs", lambda **_settings: None)
    monkeypatch.setenv("DATABASE_URL", dsn)
    monkeypatch.setenv("MIGRATE_TEST_DB_PASSWORD", PASSWORD.reveal())

    files(ONE)
    assert module.main() == 0
    files(Migration(ONE.name, "changed"))
    assert module.main() == 1
    assert "0001_one.sql was changed" in capsys.readouterr().err


def test_the_command_names_a_missing_setting(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["migrate", SERVICE])
    monkeypatch.setenv("DATABASE_URL", "postgresql:///unused")
    monkeypatch.delenv("MIGRATE_TEST_DB_PASSWORD", raising=False)

    with pytest.raises(SystemExit):
        module.main()

    assert "MIGRATE_TEST_DB_PASSWORD" in capsys.readouterr().err
