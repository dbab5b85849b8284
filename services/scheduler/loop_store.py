"""What the sweep reads and writes, set by set. Each function takes the transaction's connection."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from psycopg.rows import class_row

from libs.common.postgres import Connection, load_queries
from services.scheduler.states import TaskStatus

QUERIES = load_queries("services.scheduler")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpiredTask:
    id: UUID
    request_id: str


def purge_deleted_tasks(connection: Connection, *, limit: int) -> int:
    """Remove deleted tasks whose last run has closed. Returns how many."""
    return connection.execute(QUERIES["purge_deleted_tasks"], {"limit": limit}).rowcount


def cancel_waiting_tasks_of(connection: Connection, user_ids: Collection[UUID], *, limit: int) -> int:
    """Cancel these users' tasks that no executor holds. Returns how many."""
    locked = connection.execute(
        QUERIES["lock_waiting_tasks_of_users"], {"user_ids": list(user_ids), "limit": limit}
    ).fetchall()
    if not locked:
        return 0
    parameters = {"task_ids": [row["id"] for row in locked]}
    connection.execute(QUERIES["cancel_unclaimed_runs"], parameters)
    return connection.execute(QUERIES["cancel_waiting_tasks"], parameters).rowcount


def expire_tasks(connection: Connection, *, error_msg: str, limit: int) -> list[ExpiredTask]:
    """Fail tasks that no executor took within their time. One that is being claimed either is or isn't."""
    locked = connection.execute(QUERIES["lock_expired_tasks"], {"limit": limit}).fetchall()
    if not locked:
        return []
    parameters = {"task_ids": [row["id"] for row in locked], "error_msg": error_msg}
    connection.execute(QUERIES["cancel_unclaimed_runs"], parameters)
    with connection.cursor(row_factory=class_row(ExpiredTask)) as cursor:
        return cursor.execute(QUERIES["expire_tasks"], parameters).fetchall()


def forget_executors(connection: Connection, *, silence: timedelta) -> int:
    """Drop executors that went away for good. Returns how many."""
    return connection.execute(QUERIES["forget_executors"], {"silence": silence}).rowcount


def delete_finished_tasks(connection: Connection, status: TaskStatus, *, age: timedelta, limit: int) -> int:
    """Remove tasks of that status that ended longer ago than `age`, with runs and output. Returns how many."""
    parameters = {"status": status, "age": age, "limit": limit}
    return connection.execute(QUERIES["delete_finished_tasks"], parameters).rowcount


def read_retention_lag(connection: Connection, status: TaskStatus, *, age: timedelta) -> timedelta:
    """For how long the longest finished task of that status should have been gone; zero when none should."""
    row = connection.execute(QUERIES["read_retention_lag"], {"status": status, "age": age}).fetchone()
    lag: timedelta | None = None if row is None else row["lag"]
    return timedelta(0) if lag is None else max(lag, timedelta(0))
