"""Quotas in PostgreSQL, and what they are counted by. Each function takes the transaction's connection."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from uuid import UUID

from psycopg.rows import class_row

from libs.common.postgres import Connection, load_queries

QUERIES = load_queries("services.scheduler")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """At most so many tasks under way, waiting, and created a minute. None: the default, or no limit."""

    running: int | None = None
    queued: int | None = None
    created_per_minute: int | None = None

    def over(self, defaults: Quota) -> Quota:
        """This one, and the defaults where it says nothing."""
        return Quota(
            running=defaults.running if self.running is None else self.running,
            queued=defaults.queued if self.queued is None else self.queued,
            created_per_minute=(
                defaults.created_per_minute if self.created_per_minute is None else self.created_per_minute
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Creation:
    """So many tasks that count as created within the last minute, and for how much longer they do."""

    tasks: int
    counts_for_seconds: float


def find_quota(connection: Connection, user_id: UUID) -> Quota | None:
    """What the admin set for the user; None when that is nothing."""
    with connection.cursor(row_factory=class_row(Quota)) as cursor:
        return cursor.execute(QUERIES["find_quota"], {"user_id": user_id}).fetchone()


def put_quota(connection: Connection, user_id: UUID, quota: Quota) -> None:
    parameters = {
        "user_id": user_id,
        "running": quota.running,
        "queued": quota.queued,
        "created_per_minute": quota.created_per_minute,
    }
    connection.execute(QUERIES["put_quota"], parameters)


def lock_creation(connection: Connection, user_id: UUID) -> None:
    """Until the transaction's end nobody else who takes this lock creates tasks of the user."""
    connection.execute(QUERIES["lock_creation"], {"user_id": user_id})


def have_been_created(connection: Connection, task_ids: Collection[UUID]) -> bool:
    """Whether any of the tasks is there already."""
    row = connection.execute(QUERIES["have_been_created"], {"task_ids": list(task_ids)}).fetchone()
    return row is not None and bool(row["answer"])


def count_waiting(connection: Connection, user_id: UUID, *, most: int) -> int:
    """The user's tasks that have not started, counted up to `most`."""
    row = connection.execute(QUERIES["count_waiting"], {"user_id": user_id, "most": most}).fetchone()
    return 0 if row is None else int(row["count"])


def list_creations(connection: Connection, user_id: UUID) -> list[Creation]:
    """Of the last minute, the oldest first."""
    with connection.cursor(row_factory=class_row(Creation)) as cursor:
        return cursor.execute(QUERIES["list_creations"], {"user_id": user_id}).fetchall()


def note_creation(connection: Connection, user_id: UUID, *, tasks: int) -> None:
    connection.execute(QUERIES["note_creation"], {"user_id": user_id, "tasks": tasks})


def forget_creations(connection: Connection) -> int:
    """Drop what counts for nothing any more. Returns of how many seconds."""
    return connection.execute(QUERIES["forget_creations"]).rowcount


def forget_quotas(connection: Connection, user_ids: Collection[UUID]) -> None:
    """Of users who were deleted."""
    connection.execute(QUERIES["forget_quotas"], {"user_ids": list(user_ids)})
