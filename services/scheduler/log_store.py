"""Output of runs in PostgreSQL, read in pages. Each function takes the connection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.rows import class_row

from libs.common.postgres import Connection, load_queries
from services.scheduler.states import LOG_STREAM_NUMBERS, LogStream

QUERIES = load_queries("services.scheduler")

BOTH_STREAMS = tuple(LogStream)
BEFORE_ALL = -1
BEHIND_ALL = 2**63 - 1

_MOST_CHUNKS = 500
_STREAMS = {number: stream for stream, number in LOG_STREAM_NUMBERS.items()}


@dataclass(frozen=True, slots=True)
class StoredChunk:
    seq: int
    stream: LogStream
    at: datetime
    data: bytes


@dataclass(frozen=True, slots=True)
class LogPage:
    """`is_last`: nothing more was stored behind it when it was read."""

    chunks: Sequence[StoredChunk]
    is_last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How a task stands, and its first run from a number on; the run's fields are None when there is none yet."""

    task_status: str
    task_reason: str | None
    task_exit_code: int | None
    run_id: UUID | None
    number: int | None
    run_status: str | None
    run_reason: str | None
    run_exit_code: int | None


def list_log_page(
    connection: Connection,
    run_id: UUID,
    *,
    after: int,
    budget_bytes: int,
    streams: Sequence[LogStream] = BOTH_STREAMS,
) -> LogPage:
    """The chunks behind the number `after`, in order: as many as fit into the budget, at least one."""
    bound = {"run_id": run_id, "after": after}
    return _list(connection, QUERIES["list_log_page"], bound, budget_bytes=budget_bytes, streams=streams)


def list_log_page_backwards(
    connection: Connection,
    run_id: UUID,
    *,
    before: int,
    budget_bytes: int,
    streams: Sequence[LogStream] = BOTH_STREAMS,
) -> LogPage:
    """The chunks in front of the number `before`, the last one first."""
    bound = {"run_id": run_id, "before": before}
    return _list(connection, QUERIES["list_log_page_backwards"], bound, budget_bytes=budget_bytes, streams=streams)


def _list(
    connection: Connection, query: bytes, bound: dict[str, Any], *, budget_bytes: int, streams: Sequence[LogStream]
) -> LogPage:
    parameters = {
        "streams": [LOG_STREAM_NUMBERS[stream] for stream in streams],
        "budget": budget_bytes,
        "limit": _MOST_CHUNKS,
        **bound,
    }
    # In the text format bytes would come as hexadecimal digits, twice as many.
    rows = connection.execute(query, parameters, binary=True).fetchall()
    chunks = [StoredChunk(row["seq"], _STREAMS[row["stream"]], row["at"], row["data"]) for row in rows]
    size = sum(len(chunk.data) for chunk in chunks)
    return LogPage(chunks, is_last=len(chunks) < _MOST_CHUNKS and size < budget_bytes)


def read_log_ends(connection: Connection, run_id: UUID, *, until: int) -> dict[LogStream, bytes]:
    """The last bytes, three or more where there are as many, of each stream up to and with the chunk `until`."""
    parameters = {"run_id": run_id, "until": until, "streams": list(LOG_STREAM_NUMBERS.values())}
    ends = dict.fromkeys(LogStream, b"")
    for row in connection.execute(QUERIES["list_log_ends"], parameters, binary=True):
        ends[_STREAMS[row["stream"]]] += row["data"]
    return ends


def read_progress(connection: Connection, task_id: UUID, *, number: int) -> Progress | None:
    """None when the task is gone."""
    with connection.cursor(row_factory=class_row(Progress)) as cursor:
        return cursor.execute(QUERIES["read_progress"], {"task_id": task_id, "number": number}).fetchone()


def find_run_of_attempt(connection: Connection, task_id: UUID, number: int | None) -> UUID | None:
    """The id of that run, of the last one when `number` is None."""
    row = connection.execute(QUERIES["find_run_of_attempt"], {"task_id": task_id, "number": number}).fetchone()
    return None if row is None else row["id"]


def find_last_attempt(connection: Connection, task_id: UUID) -> int | None:
    """The number of the task's last run; None before the first."""
    row = connection.execute(QUERIES["find_last_attempt"], {"task_id": task_id}).fetchone()
    return None if row is None else row["number"]
