"""Connections, transactions and named SQL. No ORM (docs/adr)."""

from __future__ import annotations

import atexit
import re
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any, TypeVar

import psycopg
from environs import Env, EnvError
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import DictRow, Row, dict_row
from psycopg_pool import ConnectionPool, PoolTimeout

from libs.common.config import Secret, read_secret

Connection = psycopg.Connection[DictRow]
Pool = ConnectionPool[Connection]
Result = TypeVar("Result")

# A server that vanished without a word (a cut network, a host that died) answers nothing, not even a refusal; the
# kernel would wait for a quarter of an hour, and the thread that asked with it.
_SILENCE_LIMITS = {
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
}

# A server that is frozen keeps its connections, but not its own time limits. It has so much longer to answer than
# its statement may take, and so long when it is only asked whether it is there.
_ANSWER_MARGIN_SECONDS = 2.0
_CHECK_SECONDS = 2.0
_LONGEST_LOCK_SECONDS = 10.0

# The other way round: a process that froze or was cut off in the middle of a transaction holds its locks. All
# others would wait for it, however many replicas there are, so the server ends such a session.
_IDLE_IN_TRANSACTION_SECONDS = 10

_NAME = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)
_TRANSIENT = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    # The end of a session too, though psycopg counts it among the server's own faults.
    psycopg.errors.IdleInTransactionSessionTimeout,
)

# What a caller sees while the database is away; http_errors answers 503.
DATABASE_DOWN = (*_TRANSIENT, PoolTimeout)


class DatabaseSilent(psycopg.OperationalError):
    """The database didn't answer in time. What it was asked to do it may do yet."""


# The connection is there, so another one would fare no better, and the caller has waited long enough.
_FINAL = (PoolTimeout, DatabaseSilent, psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable)


class _BoundedConnection(psycopg.Connection[Row]):
    """Gives up on a server that is silent for `answer_seconds`, and closes itself then."""

    answer_seconds: float | None = None

    def wait(self, gen: PQGen[Result], interval: float = 0.1, timeout: float | None = None) -> Result:
        try:
            return super().wait(gen, interval, self.answer_seconds if timeout is None else timeout)
        except psycopg.errors._WaitTimeout as error:
            # Nothing else can be asked over it, not even to roll back.
            self.pgconn.finish()
            raise DatabaseSilent("the database doesn't answer") from error


def read_database_url(env: Env, name: str) -> Secret:
    """The named variable, in a form that libpq takes; EnvError, which doesn't show it, otherwise."""
    url = read_secret(env, name)
    try:
        conninfo_to_dict(url.reveal())
    except psycopg.ProgrammingError:
        raise EnvError(f"{name} must look like postgresql://USER:PASSWORD@HOST:PORT/DATABASE") from None
    return url


def open_pool(
    dsn: str, *, name: str, max_size: int, wait_seconds: float = 5.0, statement_seconds: float = 10.0
) -> Pool:
    """A pool of autocommit connections that answer rows as dicts. It opens without waiting for the server.

    Open it after the fork. Each connection is checked when it is handed out, since a pool otherwise hands out
    dead ones after the database's restart. `wait_seconds` bounds how long a caller waits for one (PoolTimeout),
    `statement_seconds` each statement. One whose server has been silent for 2 s more is given up (DatabaseSilent);
    so is, by the server, a transaction whose client has been silent for 10 s.
    """

    def configure(connection: Connection) -> None:
        assert isinstance(connection, _BoundedConnection)  # noqa: S101  See connection_class.
        connection.answer_seconds = statement_seconds + _ANSWER_MARGIN_SECONDS

    lock_seconds = min(0.8 * statement_seconds, _LONGEST_LOCK_SECONDS)
    pool: Pool = ConnectionPool(
        dsn,
        connection_class=_BoundedConnection[DictRow],
        configure=configure,
        min_size=1,
        max_size=max_size,
        timeout=wait_seconds,
        # A short life for each attempt: its pauses double, and a caller in need starts a new one anyway.
        reconnect_timeout=5.0,
        open=False,
        check=_check,
        name=name,
        kwargs={
            "row_factory": dict_row,
            "autocommit": True,
            "application_name": name,
            "connect_timeout": 5,
            **_SILENCE_LIMITS,
            "options": (
                f"-c statement_timeout={statement_seconds * 1000:.0f} -c lock_timeout={lock_seconds * 1000:.0f}"
                f" -c idle_in_transaction_session_timeout={_IDLE_IN_TRANSACTION_SECONDS}s -c timezone=UTC"
            ),
        },
    )
    pool.open(wait=False)
    # Left to the interpreter's end, its threads can't be stopped any more, and the process waits 5 s for each.
    atexit.register(pool.close)
    return pool


def in_transaction(pool: Pool, work: Callable[[Connection], Result], *, attempts: int = 3) -> Result:
    """Run `work` in one transaction and commit it; leaving by an exception rolls back.

    When the connection breaks or the server picks it as a deadlock's victim, the whole of `work` runs again on
    another connection, so it must be safe to run twice: ids come from outside it. A server that takes too long is
    not asked again.
    """

    def transact(connection: Connection) -> Result:
        with connection.transaction():
            return work(connection)

    return on_connection(pool, transact, attempts=attempts)


def on_connection(pool: Pool, work: Callable[[Connection], Result], *, attempts: int = 3) -> Result:
    """Run `work`, one statement or several reads, without a transaction around: each statement is its own.

    It runs again as in `in_transaction`, and saves two round trips.
    """
    while True:
        attempts -= 1
        try:
            with pool.connection() as connection:
                return work(connection)
        except _FINAL:
            raise
        except _TRANSIENT:
            if attempts <= 0:
                raise


def ping(pool: Pool) -> None:
    """Raise when the database doesn't answer; for `/readyz`."""
    with pool.connection(timeout=_CHECK_SECONDS) as connection:
        connection.execute("SELECT 1")


def _check(connection: Connection) -> None:
    """Raise when nobody is at the other end."""
    assert isinstance(connection, _BoundedConnection)  # noqa: S101  See connection_class.
    usual, connection.answer_seconds = connection.answer_seconds, _CHECK_SECONDS
    try:
        ConnectionPool.check_connection(connection)
    finally:
        connection.answer_seconds = usual


class Queries(Mapping[str, bytes]):
    """A package's named queries: `queries["claim_run"]`. A wrong name is a KeyError."""

    def __init__(self, texts: Mapping[str, bytes]) -> None:
        self._texts = dict(texts)

    def __getitem__(self, name: str) -> bytes:
        return self._texts[name]

    def __iter__(self) -> Any:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)


def load_queries(package: str) -> Queries:
    """All queries below `<package>/sql/*.sql`; each begins with a line `-- name: <name>`."""
    texts: dict[str, bytes] = {}
    for file in sorted(resources.files(package).joinpath("sql").iterdir(), key=lambda entry: entry.name):
        if not file.name.endswith(".sql"):
            continue
        parts = _NAME.split(file.read_text(encoding="utf-8"))[1:]
        for name, text in zip(parts[::2], parts[1::2], strict=True):
            if name in texts:
                raise ValueError(f"two queries named {name} in {package}")
            texts[name] = text.strip().encode()
    return Queries(texts)
