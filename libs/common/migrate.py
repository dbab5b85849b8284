"""Brings each service's schema up to date: `python -m libs.common.migrate users scheduler`.

Each service owns one schema through a role of the same name that can touch nothing else. Its numbered files
(`services/<name>/migrations/NNNN_*.sql`) run in order, each in a transaction, under an advisory lock, and are
recorded with their checksum in `<schema>.schema_migrations`. Migrations only go forward.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import psycopg
import structlog
from environs import Env
from psycopg import sql

from libs.common.config import Secret, load_config, read_log_level, read_secret
from libs.common.logs import configure_logs
from libs.common.postgres import read_database_url

log = structlog.get_logger()

_LOCK = 7_201_155


class MigrationError(Exception):
    """The files and the database disagree; the message says where."""


@dataclass(frozen=True, slots=True)
class Migration:
    name: str
    text: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class MigrateConfig:
    database_url: Secret
    passwords: Mapping[str, Secret]
    wait_seconds: float
    log_level: str


def read_migrations(service: str) -> list[Migration]:
    """The service's migrations in order."""
    folder = resources.files(f"services.{service}").joinpath("migrations")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return [Migration(file.name, file.read_text(encoding="utf-8")) for file in files]


def migrate(dsn: str, *, service: str, password: Secret) -> list[str]:
    """Make the service's role and schema and apply what is missing. Returns the names of what was applied.

    `dsn` is the owner's. MigrationError when an applied file has changed or has vanished.
    """
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
        connection.execute("SET lock_timeout = '10s'")
        _ensure_schema(connection, service, password)
        applied = _read_applied(connection, service)
        missing = _decide_missing(read_migrations(service), applied)
        for migration in missing:
            _apply(connection, service, migration)
        return [migration.name for migration in missing]


def _ensure_schema(connection: psycopg.Connection, service: str, password: Secret) -> None:
    role = sql.Identifier(service)
    exists = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (service,)).fetchone()
    verb = sql.SQL("ALTER" if exists else "CREATE")
    connection.execute(sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(verb, role, sql.Literal(password.reveal())))
    connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {} AUTHORIZATION {}").format(role, role))
    connection.execute(
        sql.SQL(
            "CREATE TABLE IF NOT EXISTS {}.schema_migrations ("
            " name text PRIMARY KEY, checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        ).format(role)
    )


def _read_applied(connection: psycopg.Connection, service: str) -> dict[str, str]:
    query = sql.SQL("SELECT name, checksum FROM {}.schema_migrations").format(sql.Identifier(service))
    return dict(connection.execute(query).fetchall())


def _decide_missing(migrations: Sequence[Migration], applied: Mapping[str, str]) -> list[Migration]:
    known = {migration.name: migration for migration in migrations}
    for name, checksum in applied.items():
        # A newer release may have migrated already; its files are unknown to this code, and that is fine.
        if name in known and known[name].checksum != checksum:
            raise MigrationError(f"{name} was changed after it had been applied; add a new migration instead")
    return [migration for migration in migrations if migration.name not in applied]


def _apply(connection: psycopg.Connection, service: str, migration: Migration) -> None:
    role = sql.Identifier(service)
    with connection.transaction():
        connection.execute(sql.SQL("SET LOCAL ROLE {}").format(role))
        connection.execute(migration.text.encode())
        connection.execute("RESET ROLE")
        connection.execute(
            sql.SQL("INSERT INTO {}.schema_migrations (name, checksum) VALUES (%s, %s)").format(role),
            (migration.name, migration.checksum),
        )
    log.info("migration_applied", schema=service, migration=migration.name)


def _wait_for_database(dsn: str, *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            psycopg.connect(dsn, connect_timeout=3).close()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)
        else:
            return


def run(services: Sequence[str]) -> None:
    def from_env(env: Env) -> MigrateConfig:
        return MigrateConfig(
            database_url=read_database_url(env, "DATABASE_URL"),
            passwords={name: read_secret(env, f"{name.upper()}_DB_PASSWORD") for name in services},
            wait_seconds=env.float("MIGRATE_WAIT_SECONDS", 120.0),
            log_level=read_log_level(env),
        )

    config = load_config(from_env)
    configure_logs(service="migrate", level=config.log_level)
    _wait_for_database(config.database_url.reveal(), seconds=config.wait_seconds)
    for service in services:
        applied = migrate(config.database_url.reveal(), service=service, password=config.passwords[service])
        log.info("schema_ready", schema=service, applied=len(applied))


def main() -> int:
    try:
        run(sys.argv[1:])
    except (MigrationError, psycopg.Error) as error:
        sys.stderr.write(f"migration failed: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
