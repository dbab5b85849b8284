"""Tasks in PostgreSQL, as the public API reads and writes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import Cursor as DatabaseCursor
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from libs.common.paging import Cursor
from libs.common.postgres import Connection, load_queries
from services.scheduler.states import TaskStatus
from services.scheduler.waiting import EXECUTOR_SEEN_WITHIN, Capacity

QUERIES = load_queries("services.scheduler")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A row of tasks with what its live run is at, if it has a live run."""

    id: UUID
    user_id: UUID
    status: str
    reason: str | None
    priority: int
    name: str | None
    labels: dict[str, str]
    image: str
    command: str | None
    args: list[str]
    entrypoint: list[str] | None
    environment: dict[str, str]
    timeout_seconds: int
    stop_grace_seconds: int
    cpus: float
    memory_mb: int
    pids: int
    network: str
    on_executor_lost: str
    max_attempts: int
    backoff_seconds: int
    max_backoff_seconds: int
    retry_exit_codes: list[int] | None
    pool: str
    concurrency_key: str
    concurrency_limit: int
    queue_ttl_seconds: int | None
    scheduled_at: datetime
    due_at: datetime
    attempts: int
    lost_count: int
    result: bytes | None
    error_msg: str | None
    exit_code: int | None
    created_at: datetime
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    updated_at: datetime
    deleted_at: datetime | None
    request_id: str
    run_status: str | None
    run_published: bool | None
    run_pulling: bool | None


_TASK_COLUMNS = frozenset(field.name for field in fields(Task))


def _task_row(cursor: DatabaseCursor[Any]) -> Callable[[Sequence[Any]], Task]:
    """A Task from each row. A column that a later version's migration has added means nothing to this one."""
    names = [column.name for column in cursor.description or ()]

    def make(values: Sequence[Any]) -> Task:
        row = zip(names, values, strict=True)
        return Task(**{name: value for name, value in row if name in _TASK_COLUMNS})

    return make


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTask:
    """A task as its request defines it. `scheduled_at` None means now; an empty `concurrency_key`: no group."""

    id: UUID
    user_id: UUID
    image: str
    command: str | None
    args: Sequence[str]
    entrypoint: Sequence[str] | None
    environment: dict[str, str]
    scheduled_at: datetime | None
    name: str | None
    labels: dict[str, str]
    priority: int
    timeout_seconds: int
    stop_grace_seconds: int
    cpus: float
    memory_mb: int
    pids: int
    network: str
    on_executor_lost: str
    max_attempts: int
    backoff_seconds: int
    max_backoff_seconds: int
    retry_exit_codes: Sequence[int] | None
    pool: str
    concurrency_key: str
    concurrency_limit: int
    queue_ttl_seconds: int | None
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFilter:
    """Which tasks a list shows: `user_id` None means everybody's; since ≤ created_at < until."""

    user_id: UUID | None
    statuses: Sequence[TaskStatus]
    since: datetime
    until: datetime
    before: Cursor
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedTask:
    id: UUID
    user_id: UUID
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One attempt, with its task's limits. `due_at` None: of before it was kept."""

    number: int
    status: str
    reason: str | None
    exit_code: int | None
    error_msg: str | None
    executor_id: str | None
    engine_id: str | None
    image_digest: str | None
    due_at: datetime | None
    queued_at: datetime
    claimed_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    closed_at: datetime | None
    pulled_seconds: float | None
    max_memory_mb: int | None
    cpu_seconds: float | None
    cpus: float
    memory_mb: int
    pids: int
    timeout_seconds: int
    stop_grace_seconds: int


def create_task(connection: Connection, new: NewTask) -> Task:
    with connection.cursor(row_factory=_task_row) as cursor:
        task = cursor.execute(QUERIES["create_task"], _to_row(new)).fetchone() or find_task(connection, new.id)
    assert task is not None, "neither inserted nor there"  # noqa: S101
    return task


def _to_row(new: NewTask) -> dict[str, Any]:
    return {
        "id": new.id,
        "user_id": new.user_id,
        "image": new.image,
        "command": new.command,
        "args": list(new.args),
        "entrypoint": None if new.entrypoint is None else list(new.entrypoint),
        "environment": Jsonb(new.environment),
        "scheduled_at": new.scheduled_at,
        "name": new.name,
        "labels": Jsonb(new.labels),
        "priority": new.priority,
        "timeout_seconds": new.timeout_seconds,
        "stop_grace_seconds": new.stop_grace_seconds,
        "cpus": new.cpus,
        "memory_mb": new.memory_mb,
        "pids": new.pids,
        "network": new.network,
        "on_executor_lost": new.on_executor_lost,
        "max_attempts": new.max_attempts,
        "backoff_seconds": new.backoff_seconds,
        "max_backoff_seconds": new.max_backoff_seconds,
        "retry_exit_codes": None if new.retry_exit_codes is None else list(new.retry_exit_codes),
        "pool": new.pool,
        "concurrency_key": new.concurrency_key,
        "concurrency_limit": new.concurrency_limit,
        "queue_ttl_seconds": new.queue_ttl_seconds,
        "request_id": new.request_id,
    }


def find_task(connection: Connection, task_id: UUID) -> Task | None:
    with connection.cursor(row_factory=_task_row) as cursor:
        return cursor.execute(QUERIES["find_task"], {"task_id": task_id}).fetchone()


def find_owner(connection: Connection, task_id: UUID) -> UUID | None:
    """Whose task it is; None when there is no such task."""
    row = connection.execute(QUERIES["find_owner"], {"task_id": task_id}).fetchone()
    return None if row is None else row["user_id"]


def list_tasks(connection: Connection, wanted: TaskFilter) -> list[Task]:
    """At most `wanted.limit` tasks, newest first."""
    query = "list_tasks" if wanted.user_id is None else "list_tasks_of_user"
    parameters = {
        "user_id": wanted.user_id,
        "statuses": list(wanted.statuses),
        "since": wanted.since,
        "until": wanted.until,
        "before_time": wanted.before.created_at,
        "before_id": wanted.before.id,
        "limit": wanted.limit,
    }
    with connection.cursor(row_factory=_task_row) as cursor:
        return cursor.execute(QUERIES[query], parameters).fetchall()


def lock_task(connection: Connection, task_id: UUID) -> LockedTask | None:
    """The task, and until the transaction's end nobody else changes it or its runs. None when it isn't there."""
    with connection.cursor(row_factory=class_row(LockedTask)) as cursor:
        return cursor.execute(QUERIES["lock_task"], {"task_id": task_id}).fetchone()


def stop_locked_task(connection: Connection, task_id: UUID) -> list[str]:
    """Cancel what waits; ask the executor to stop what it holds. A terminal task stays as it is.

    Returns the ids of the executors that now have something to stop.
    """
    parameters = {"task_id": task_id}
    connection.execute(QUERIES["cancel_unclaimed_run"], parameters)
    asked = connection.execute(QUERIES["request_stop"], parameters).fetchall()
    connection.execute(QUERIES["cancel_waiting_task"], parameters)
    return [row["executor_id"] for row in asked]


def remove_locked_task(connection: Connection, task_id: UUID) -> None:
    """Delete the task, or hide it while a run of it lives; the sweep deletes it then."""
    parameters = {"task_id": task_id}
    connection.execute(QUERIES["hide_task"], parameters)
    connection.execute(QUERIES["delete_task"], parameters)


def list_runs(connection: Connection, task_id: UUID) -> list[Run]:
    """The task's runs, newest first."""
    with connection.cursor(row_factory=class_row(Run)) as cursor:
        return cursor.execute(QUERIES["list_runs"], {"task_id": task_id}).fetchall()


def read_capacity(connection: Connection) -> Capacity:
    """Of the executors that were heard of within EXECUTOR_SEEN_WITHIN."""
    row = connection.execute(QUERIES["read_capacity"], {"seen_within": EXECUTOR_SEEN_WITHIN}).fetchone()
    assert row is not None, "an aggregate that returns nothing"  # noqa: S101
    return Capacity(executors=row["executors"], slots=row["slots"], running=row["running"])
