"""Tasks in PostgreSQL, as the public API reads and writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, fields
from datetime import datetime
from operator import itemgetter
from typing import Any
from uuid import UUID

from psycopg import Cursor as DatabaseCursor
from psycopg.rows import class_row
from psycopg.types.json import Json

from libs.common.postgres import Connection, load_queries
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
    schedule_id: UUID | None
    run_status: str | None
    run_published: bool | None
    run_pulling: bool | None


_TASK_COLUMNS = frozenset(field.name for field in fields(Task))


def _task_row(cursor: DatabaseCursor[Any]) -> Callable[[Sequence[Any]], Task]:
    """A Task from each row. A column that a later version's migration has added means nothing to this one."""
    names = [column.name for column in cursor.description or ()]
    known = [name for name in names if name in _TASK_COLUMNS]
    pick = itemgetter(*map(names.index, known))

    def make(values: Sequence[Any]) -> Task:
        return Task(**dict(zip(known, pick(values), strict=True)))

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


@dataclass(frozen=True, slots=True)
class Stopped:
    """How many tasks a stop changed (not those that were being stopped already), and who has more to stop now."""

    tasks: int
    executor_ids: Set[str]


_NEW_TASK_COLUMNS = tuple(field.name for field in fields(NewTask))


def create_tasks(connection: Connection, new: Sequence[NewTask]) -> list[Task]:
    """Insert them in one statement, in their order, and return them; those that are there are left alone."""
    rows = [{column: getattr(task, column) for column in _NEW_TASK_COLUMNS} for task in new]
    with connection.cursor(row_factory=_task_row) as cursor:
        # As JSON: PostgreSQL makes rows of it faster than it takes a thousand times twenty parameters.
        created = cursor.execute(QUERIES["create_tasks"], {"tasks": Json(rows, _dump_rows)}).fetchall()
    # The same insert again, after a broken connection: the first one was committed.
    tasks = created if len(created) == len(new) else find_tasks(connection, [task.id for task in new])
    by_id = {task.id: task for task in tasks}
    return [by_id[task.id] for task in new]


def _dump_rows(rows: Sequence[dict[str, Any]]) -> str:
    return json.dumps(rows, ensure_ascii=False, separators=(",", ":"), default=str)


def find_task(connection: Connection, task_id: UUID) -> Task | None:
    with connection.cursor(row_factory=_task_row) as cursor:
        return cursor.execute(QUERIES["find_task"], {"task_id": task_id}).fetchone()


def find_owner(connection: Connection, task_id: UUID) -> UUID | None:
    """Whose task it is; None when there is no such task."""
    row = connection.execute(QUERIES["find_owner"], {"task_id": task_id}).fetchone()
    return None if row is None else row["user_id"]


def list_owners(connection: Connection, task_ids: Sequence[UUID]) -> list[UUID]:
    """Whose tasks these are."""
    return [row["user_id"] for row in connection.execute(QUERIES["list_owners"], {"task_ids": list(task_ids)})]


def find_tasks(connection: Connection, task_ids: Sequence[UUID]) -> list[Task]:
    """Those of them that are there, in this order."""
    with connection.cursor(row_factory=_task_row) as cursor:
        return cursor.execute(QUERIES["find_tasks"], {"task_ids": list(task_ids)}).fetchall()


def lock_task(connection: Connection, task_id: UUID) -> LockedTask | None:
    """The task, and until the transaction's end nobody else changes it or its runs. None when it isn't there."""
    with connection.cursor(row_factory=class_row(LockedTask)) as cursor:
        return cursor.execute(QUERIES["lock_task"], {"task_id": task_id}).fetchone()


def list_own_tasks(connection: Connection, task_ids: Sequence[UUID], user_id: UUID | None) -> list[UUID]:
    """Those of them that are there, and are this user's unless it is None; in this order."""
    parameters = {"task_ids": list(task_ids), "user_id": user_id}
    return [row["id"] for row in connection.execute(QUERIES["list_own_tasks"], parameters)]


def lock_live_tasks(connection: Connection, task_ids: Sequence[UUID], user_id: UUID | None) -> list[UUID]:
    """Those of them that haven't ended, and are this user's unless it is None; locked as by `lock_task`."""
    rows = connection.execute(QUERIES["lock_live_tasks"], {"task_ids": list(task_ids), "user_id": user_id})
    return [row["id"] for row in rows]


def stop_locked_tasks(connection: Connection, task_ids: Sequence[UUID]) -> Stopped:
    """Cancel what waits; ask executors to stop what they hold. Terminal tasks stay as they are."""
    parameters = {"task_ids": list(task_ids)}
    connection.execute(QUERIES["cancel_unclaimed_runs"], parameters)
    asked = connection.execute(QUERIES["request_stops"], parameters).fetchall()
    cancelled = connection.execute(QUERIES["cancel_waiting_tasks"], parameters).rowcount
    return Stopped(len(asked) + cancelled, {row["executor_id"] for row in asked})


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
