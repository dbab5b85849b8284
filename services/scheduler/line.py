"""The line from its tasks' point of view: what holds one back, and how many go before it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from psycopg.rows import class_row

from libs.common.postgres import Connection, Pool, load_queries, on_connection
from services.scheduler.states import RunStatus, TaskStatus
from services.scheduler.store import Task
from services.scheduler.waiting import EXECUTOR_SEEN_WITHIN, Capacity, Hold

QUERIES = load_queries("services.scheduler")

# No further is counted; it stands for "more than 1000".
BEYOND = 1001

FRESH_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Each pool's capacity, how many tasks of each user and of each of their groups are under way, and quotas.

    `default_running` is the quota of users without one of their own.
    """

    capacities: Mapping[str, Capacity] = field(default_factory=dict)
    of_user: Mapping[UUID, int] = field(default_factory=dict)
    of_group: Mapping[tuple[UUID, str], int] = field(default_factory=dict)
    quotas: Mapping[UUID, int] = field(default_factory=dict)
    default_running: int | None = None

    def get_capacity(self, pool: str) -> Capacity:
        return self.capacities.get(pool) or Capacity(0, 0, 0, pool=pool)

    def get_hold(self, task: Task) -> Hold:
        """What may hold the task back besides those before it."""
        return Hold(
            quota=self.quotas.get(task.user_id, self.default_running),
            user_runs=self.of_user.get(task.user_id, 0),
            concurrency_key=task.concurrency_key,
            concurrency_limit=task.concurrency_limit,
            group_runs=self.of_group.get((task.user_id, task.concurrency_key), 0),
        )


class Line:
    """What every waiting task's answer needs, at most a second old, and what one task's needs, counted for it."""

    def __init__(self, *, pool: Pool, default_running: int | None) -> None:
        self._pool = pool
        self._default_running = default_running
        self._snapshot = Snapshot()
        self._read_at = float("-inf")

    def read(self) -> Snapshot:
        """Over a connection of its own: read it before another one is held, or all may wait for each other's."""
        if time.monotonic() - self._read_at > FRESH_SECONDS:
            self._snapshot = on_connection(
                self._pool, lambda connection: _read_snapshot(connection, self._default_running)
            )
            self._read_at = time.monotonic()
        return self._snapshot

    def count_ahead(self, task: Task) -> int:
        """How many tasks go before this one that is due, as far as can be told now; at most BEYOND."""
        if task.status == TaskStatus.QUEUED:
            return on_connection(self._pool, lambda connection: _count_published_ahead(connection, task.id))
        ahead = on_connection(self._pool, lambda connection: _count_ahead(connection, task))
        return min(self.read().get_capacity(task.pool).outstanding + ahead, BEYOND)


def waits_in_line(task: Task, hold: Hold) -> bool:
    """Whether it is the turn of others that a due task waits for, and nothing of its own."""
    if task.status == TaskStatus.QUEUED:
        return task.run_status == RunStatus.QUEUED
    return task.status == TaskStatus.PENDING and not hold.is_over_quota and not hold.is_group_full


def _read_snapshot(connection: Connection, default_running: int | None) -> Snapshot:
    with connection.cursor(row_factory=class_row(Capacity)) as cursor:
        capacities = cursor.execute(QUERIES["list_capacities"], {"seen_within": EXECUTOR_SEEN_WITHIN}).fetchall()
    of_user: Counter[UUID] = Counter()
    of_group: Counter[tuple[UUID, str]] = Counter()
    for row in connection.execute(QUERIES["list_under_way"]):
        of_user[row["user_id"]] += row["runs"]
        of_group[row["user_id"], row["concurrency_key"]] += row["runs"]
    quotas = connection.execute(QUERIES["list_running_quotas"])
    return Snapshot(
        capacities={capacity.pool: capacity for capacity in capacities},
        of_user=of_user,
        of_group=of_group,
        quotas={row["user_id"]: row["running"] for row in quotas},
        default_running=default_running,
    )


def _count_ahead(connection: Connection, task: Task) -> int:
    row = connection.execute(
        QUERIES["count_ahead"],
        {
            "user_id": task.user_id,
            "pool": task.pool,
            "priority": task.priority,
            "due_at": task.due_at,
            "most": BEYOND,
        },
    ).fetchone()
    return 0 if row is None else int(row["count"])


def _count_published_ahead(connection: Connection, task_id: UUID) -> int:
    row = connection.execute(QUERIES["count_published_ahead"], {"task_id": task_id}).fetchone()
    return 0 if row is None else int(row["count"])
