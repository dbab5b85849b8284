"""What the sweep reads and writes, set by set. Each function takes the transaction's connection."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from uuid import UUID

from libs.common.postgres import Connection, load_queries

QUERIES = load_queries("services.scheduler")


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
