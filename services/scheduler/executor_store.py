"""Executors in PostgreSQL, as operators see them. Each function takes the transaction's connection."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from psycopg.rows import class_row

from libs.common.postgres import Connection, load_queries
from services.scheduler.states import ExecutorState
from services.scheduler.waiting import EXECUTOR_SEEN_WITHIN

QUERIES = load_queries("services.scheduler")


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownExecutor:
    """`running`: the runs that it holds. `is_heard`: it synced lately."""

    id: str
    host: str
    engine_id: str
    pools: list[str]
    slots: int
    running: int
    state: str
    is_heard: bool
    started_at: datetime
    last_seen_at: datetime


def list_executors(connection: Connection, *, after: str, limit: int) -> list[KnownExecutor]:
    """In the order of their ids, those behind `after`."""
    parameters = {"after": after, "limit": limit, "seen_within": EXECUTOR_SEEN_WITHIN}
    with connection.cursor(row_factory=class_row(KnownExecutor)) as cursor:
        return cursor.execute(QUERIES["list_executors"], parameters).fetchall()


def set_state(connection: Connection, executor_id: str, state: ExecutorState) -> KnownExecutor | None:
    """None when there is no such executor."""
    parameters = {"id": executor_id, "state": state, "seen_within": EXECUTOR_SEEN_WITHIN}
    with connection.cursor(row_factory=class_row(KnownExecutor)) as cursor:
        return cursor.execute(QUERIES["set_executor_state"], parameters).fetchone()
