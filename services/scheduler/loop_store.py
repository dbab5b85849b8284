"""What dispatch and sweep read and write, set by set. Each function takes the transaction's connection."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from psycopg.rows import class_row

from libs.common.postgres import Connection, load_queries
from services.scheduler.states import TaskStatus
from services.scheduler.waiting import EXECUTOR_SEEN_WITHIN

QUERIES = load_queries("services.scheduler")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """`slots` of executors that were heard of lately; `outstanding` runs are queued and not yet claimed.

    `claims_total` only ever grows; `due_in` is the time until the next pending task is due, negative when one
    waits, None when there is none.
    """

    slots: int
    claims_total: int
    outstanding: int
    due_in: timedelta | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DueTask:
    """A task that is due, and the number that its next run gets."""

    task_id: UUID
    number: int
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedRun:
    run_id: UUID
    task_id: UUID
    request_id: str


def read_backlog(connection: Connection) -> Backlog:
    with connection.cursor(row_factory=class_row(Backlog)) as cursor:
        backlog = cursor.execute(QUERIES["read_backlog"], {"seen_within": EXECUTOR_SEEN_WITHIN}).fetchone()
    assert backlog is not None, "an aggregate that returns nothing"  # noqa: S101
    return backlog


def lock_due_tasks(connection: Connection, *, limit: int) -> list[DueTask]:
    """Due tasks that no other replica has in hand, the most urgent first, then the longest due."""
    with connection.cursor(row_factory=class_row(DueTask)) as cursor:
        return cursor.execute(QUERIES["lock_due_tasks"], {"limit": limit}).fetchall()


def queue_tasks(
    connection: Connection, due: Sequence[DueTask], run_ids: Sequence[UUID], *, publish_within: timedelta
) -> None:
    """Move locked tasks to queued, each with a run. What isn't published by then, the sweep publishes."""
    connection.execute(
        QUERIES["queue_tasks"],
        {
            "task_ids": [task.task_id for task in due],
            "run_ids": list(run_ids),
            "numbers": [task.number for task in due],
            "request_ids": [task.request_id for task in due],
            "publish_within": publish_within,
        },
    )


def mark_published(connection: Connection, run_ids: Collection[UUID], *, claim_within: timedelta) -> None:
    """Note that the broker has the messages. What isn't claimed by then is published again; the time doubles."""
    parameters = {"run_ids": list(run_ids), "claim_within": claim_within}
    connection.execute(QUERIES["mark_published"], parameters)


def take_runs_to_publish(connection: Connection, *, publish_within: timedelta, limit: int) -> list[QueuedRun]:
    """Queued runs whose message never left, or was never claimed."""
    parameters = {"publish_within": publish_within, "limit": limit}
    with connection.cursor(row_factory=class_row(QueuedRun)) as cursor:
        return cursor.execute(QUERIES["take_runs_to_publish"], parameters).fetchall()


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


def forget_executors(connection: Connection, *, silence: timedelta) -> int:
    """Drop executors that went away for good. Returns how many."""
    return connection.execute(QUERIES["forget_executors"], {"silence": silence}).rowcount


def count_tasks(connection: Connection) -> dict[str, int]:
    """How many tasks there are of each status that isn't terminal."""
    return {row["status"]: row["count"] for row in connection.execute(QUERIES["count_tasks"])}


def delete_finished_tasks(connection: Connection, status: TaskStatus, *, age: timedelta, limit: int) -> int:
    """Remove tasks of that status that ended longer ago than `age`, with runs and output. Returns how many."""
    parameters = {"status": status, "age": age, "limit": limit}
    return connection.execute(QUERIES["delete_finished_tasks"], parameters).rowcount


def read_retention_lag(connection: Connection, status: TaskStatus, *, age: timedelta) -> timedelta:
    """For how long the longest finished task of that status should have been gone; zero when none should."""
    row = connection.execute(QUERIES["read_retention_lag"], {"status": status, "age": age}).fetchone()
    lag: timedelta | None = None if row is None else row["lag"]
    return timedelta(0) if lag is None else max(lag, timedelta(0))
