"""The line in which due tasks wait, as dispatch reads and shortens it, and its runs' messages.

Each function takes the transaction's connection. What touches lanes comes after `lock_dispatch`, in the same one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from psycopg.rows import class_row

from libs.common.postgres import Connection, load_queries
from services.scheduler.shares import MANY_TASKS, Lane, Room
from services.scheduler.waiting import EXECUTOR_SEEN_WITHIN

QUERIES = load_queries("services.scheduler")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """For how long the longest waiting task has been due, and when the next one will be. None: there is none."""

    overdue: timedelta | None
    due_in: timedelta | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DueTask:
    """A task that was taken out of the lane at `place`, counted from 1, and the number that its next run gets."""

    place: int
    task_id: UUID
    number: int
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedRun:
    run_id: UUID
    task_id: UUID
    request_id: str
    pool: str


def look_ahead(connection: Connection) -> Ahead:
    with connection.cursor(row_factory=class_row(Ahead)) as cursor:
        ahead = cursor.execute(QUERIES["look_ahead"]).fetchone()
    assert ahead is not None, "a row without a table"  # noqa: S101
    return ahead


def lock_dispatch(connection: Connection) -> None:
    """Until the transaction's end no other loop dispatches."""
    connection.execute(QUERIES["lock_dispatch"])


def take_arrivals(connection: Connection, *, limit: int) -> int:
    """Let lanes know of what has become due in them since the last look. Returns of how much, at most `limit`."""
    row = connection.execute(QUERIES["take_arrivals"], {"limit": limit}).fetchone()
    assert row is not None, "a count that returns nothing"  # noqa: S101
    return int(row["arrived"])


def list_rooms(connection: Connection) -> list[Room]:
    """Of each pool that an executor serves which was heard of lately and isn't drained."""
    with connection.cursor(row_factory=class_row(Room)) as cursor:
        return cursor.execute(QUERIES["list_rooms"], {"seen_within": EXECUTOR_SEEN_WITHIN}).fetchall()


def list_lanes(
    connection: Connection, pools: Sequence[str], *, limit: int, default_running: int | None
) -> list[Lane]:
    """Due lanes that may get something: at most `limit` of each pool's idle users, and of each active user's."""
    parameters = {"pools": list(pools), "limit": limit, "default_running": default_running, "many": MANY_TASKS}
    with connection.cursor(row_factory=class_row(Lane)) as cursor:
        return cursor.execute(QUERIES["list_lanes"], parameters).fetchall()


def lock_due_tasks(connection: Connection, shares: Sequence[tuple[Lane, int]]) -> list[DueTask]:
    """At most so many due tasks out of each lane, the longest due first."""
    parameters = _of_lanes([lane for lane, _ in shares]) | {"counts": [count for _, count in shares]}
    with connection.cursor(row_factory=class_row(DueTask)) as cursor:
        return cursor.execute(QUERIES["lock_due_tasks"], parameters).fetchall()


def queue_tasks(
    connection: Connection, due: Sequence[DueTask], runs: Sequence[QueuedRun], *, publish_within: timedelta
) -> None:
    """Move locked tasks to queued, each with a run. What isn't published by then, the sweep publishes."""
    connection.execute(
        QUERIES["queue_tasks"],
        {
            "task_ids": [task.task_id for task in due],
            "numbers": [task.number for task in due],
            "run_ids": [run.run_id for run in runs],
            "request_ids": [run.request_id for run in runs],
            "pools": [run.pool for run in runs],
            "publish_within": publish_within,
        },
    )


def move_lanes(connection: Connection, lanes: Sequence[Lane]) -> None:
    """Let each lane say again since when, or from when on, something is due in it."""
    connection.execute(QUERIES["move_lanes"], _of_lanes(lanes))


def mark_published(connection: Connection, run_ids: Collection[UUID], *, claim_within: timedelta) -> None:
    """Note that the broker has the messages. What isn't claimed by then is published again; the time doubles."""
    parameters = {"run_ids": list(run_ids), "claim_within": claim_within}
    connection.execute(QUERIES["mark_published"], parameters)


def leave_to_others(connection: Connection, run_ids: Collection[UUID]) -> None:
    """Have runs whose message may not have left published by the next sweep, of whichever replica."""
    connection.execute(QUERIES["leave_to_others"], {"run_ids": list(run_ids)})


def list_queued_pools(connection: Connection) -> list[str]:
    return [row["pool"] for row in connection.execute(QUERIES["list_queued_pools"])]


def take_runs_to_publish(
    connection: Connection,
    *,
    publish_within: timedelta,
    lost_within: timedelta,
    empty_pools: Sequence[str],
    limit: int,
) -> list[QueuedRun]:
    """Queued runs whose message never left, or was not claimed in time.

    `lost_within` is a shorter time for the second than the run's own, doubling like that, for what can't wait at
    the broker any more, since its pool's queue is empty or what was published so much later has been claimed.
    """
    parameters = {
        "publish_within": publish_within,
        "lost_within": lost_within,
        "empty_pools": list(empty_pools),
        "limit": limit,
    }
    with connection.cursor(row_factory=class_row(QueuedRun)) as cursor:
        return cursor.execute(QUERIES["take_runs_to_publish"], parameters).fetchall()


def _of_lanes(lanes: Sequence[Lane]) -> dict[str, Any]:
    return {
        "pools": [lane.pool for lane in lanes],
        "priorities": [lane.priority for lane in lanes],
        "user_ids": [lane.user_id for lane in lanes],
        "keys": [lane.concurrency_key for lane in lanes],
        "limits": [lane.concurrency_limit for lane in lanes],
    }
