"""Runs, leases and executors in PostgreSQL, set by set. Each function takes the transaction's connection."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg.rows import class_row

from libs.common.postgres import Connection, load_queries
from libs.common.topology import DEFAULT_POOL
from services.scheduler.retry import Ending, RetryPolicy
from services.scheduler.states import LOG_STREAM_NUMBERS, LogStream, Outcome

QUERIES = load_queries("services.scheduler")

BEAT_EVERY = timedelta(seconds=4)
# A part that didn't beat for longer was away, and what it should have heard meanwhile doesn't count.
BEAT_GAP = timedelta(seconds=20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Executor:
    """One start (boot) of an executor, as it presents itself."""

    id: str
    boot_id: str
    engine_id: str
    host: str
    slots: int
    running: int
    pools: Sequence[str] = (DEFAULT_POOL,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """`is_new`: this boot was not known before. `state`: whether it takes runs."""

    is_new: bool
    state: str
    server_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A run that an executor has the lease of, in its epoch."""

    run_id: UUID
    epoch: int
    pulling: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    run_id: UUID
    epoch: int
    container_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    run_id: UUID
    epoch: int
    started_at: datetime | None
    container_id: str | None
    image_digest: str | None
    pulled_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a run ended, as its executor saw it. `result` is the end of its standard output.

    What was used and how long the pull took are None when the executor doesn't know.
    """

    run_id: UUID
    epoch: int
    outcome: Outcome
    reason: str | None
    exit_code: int | None
    error_msg: str | None
    result: bytes | None
    started_at: datetime | None
    finished_at: datetime | None
    image_digest: str | None
    container_id: str | None
    max_memory_mb: int | None
    cpu_seconds: float | None = None
    pulled_seconds: float | None = None


Report = Prepared | Started | Finished


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncRequest:
    """One sync: what an executor holds, wants and tells. `questions`: runs of which it found a container."""

    executor: Executor
    claims: Sequence[UUID]
    held: Sequence[Held]
    reports: Sequence[Report]
    logs: Sequence[LogChunk]
    questions: Sequence[UUID] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LogChunk:
    """`seq` grows by one with each chunk of a run, so a chunk that is sent twice is kept once."""

    run_id: UUID
    epoch: int
    seq: int
    stream: LogStream
    at: datetime
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedRun:
    """A run with what its next move depends on; nobody else moves it until the transaction's end."""

    run_id: UUID
    task_id: UUID
    number: int
    status: str
    epoch: int
    executor_id: str | None
    boot_id: str | None
    stop_reason: str | None
    claimed_at: datetime | None
    started_at: datetime | None
    task_status: str
    is_deleted: bool
    attempts: int
    lost_count: int
    max_attempts: int
    backoff_seconds: int
    max_backoff_seconds: int
    retry_exit_codes: list[int] | None
    due_at: datetime
    is_scheduled: bool
    request_id: str

    @property
    def policy(self) -> RetryPolicy:
        return RetryPolicy(
            max_attempts=self.max_attempts,
            backoff=timedelta(seconds=self.backoff_seconds),
            max_backoff=timedelta(seconds=self.max_backoff_seconds),
            on_exit_codes=self.retry_exit_codes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A run that was started or closed; `started_at` None means that its container never ran."""

    run_id: UUID
    task_id: UUID
    started_at: datetime | None
    finished_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    run_id: UUID
    executor_id: str
    boot_id: str
    epoch: int
    adopted: bool
    is_expired: bool
    is_stopping: bool
    was_running: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """What an executor needs to know to run a task once."""

    task_id: UUID
    run_id: UUID
    user_id: UUID
    number: int
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
    scheduled_at: datetime
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredOutput:
    """How much of a run's output is kept already: whoever takes the run over goes on behind it."""

    run_id: UUID
    next_seq: int
    stdout_bytes: int
    stderr_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One of the scheduler's own loops, or its HTTP side: since when it has been at work without a gap."""

    name: str
    since: datetime
    seen_at: datetime


def register_executor(connection: Connection, executor: Executor, *, claims: int) -> Registration | None:
    """Note that the executor is alive. None when a later boot of the same id has taken its place.

    The row's lock makes all syncs of one executor follow each other.
    """
    parameters = {
        "id": executor.id,
        "boot_id": executor.boot_id,
        "engine_id": executor.engine_id,
        "host": executor.host,
        "pools": list(executor.pools),
        "slots": executor.slots,
        "running": executor.running,
        "claims": claims,
    }
    with connection.cursor(row_factory=class_row(Registration)) as cursor:
        return cursor.execute(QUERIES["register_executor"], parameters).fetchone()


def lock_runs(connection: Connection, run_ids: Collection[UUID]) -> dict[UUID, LockedRun]:
    """Those of the runs that exist, by id."""
    if not run_ids:
        return {}
    with connection.cursor(row_factory=class_row(LockedRun)) as cursor:
        rows = cursor.execute(QUERIES["lock_runs"], {"run_ids": list(run_ids)})
        return {row.run_id: row for row in rows}


def lock_lost_runs(connection: Connection, *, silence: timedelta, limit: int) -> list[LockedRun]:
    """Held runs of engines that nobody has heard of for `silence`, but for those that wait for their engine."""
    parameters = {"silence": silence, "gap": BEAT_GAP, "limit": limit}
    with connection.cursor(row_factory=class_row(LockedRun)) as cursor:
        return cursor.execute(QUERIES["lock_lost_runs"], parameters).fetchall()


def renew_leases(
    connection: Connection, executor: Executor, held: Sequence[Held], *, lease: timedelta
) -> set[UUID]:
    """The runs of `held` whose lease this boot still has; they are extended by `lease` from now."""
    if not held:
        return set()
    rows = connection.execute(
        QUERIES["renew_leases"],
        {
            "run_ids": [entry.run_id for entry in held],
            "epochs": [entry.epoch for entry in held],
            "pulling": [entry.pulling for entry in held],
            "executor_id": executor.id,
            "boot_id": executor.boot_id,
            "lease": lease,
        },
    )
    return {row["run_id"] for row in rows}


def append_logs(connection: Connection, chunks: Sequence[LogChunk]) -> None:
    """Keep the chunks that are new and whose epoch is the run's."""
    if not chunks:
        return
    connection.execute(
        QUERIES["append_logs"],
        {
            "run_ids": [chunk.run_id for chunk in chunks],
            "epochs": [chunk.epoch for chunk in chunks],
            "seqs": [chunk.seq for chunk in chunks],
            "streams": [LOG_STREAM_NUMBERS[chunk.stream] for chunk in chunks],
            "times": [chunk.at for chunk in chunks],
            "data": [chunk.data for chunk in chunks],
        },
    )


def name_containers(connection: Connection, prepared: Sequence[Prepared]) -> None:
    if not prepared:
        return
    connection.execute(
        QUERIES["name_containers"],
        {
            "run_ids": [report.run_id for report in prepared],
            "epochs": [report.epoch for report in prepared],
            "container_ids": [report.container_id for report in prepared],
        },
    )


def start_runs(connection: Connection, started: Sequence[Started]) -> list[Moved]:
    """Move claimed runs and their tasks to running. Returns those that moved."""
    if not started:
        return []
    parameters = {
        "run_ids": [report.run_id for report in started],
        "epochs": [report.epoch for report in started],
        "started_ats": [report.started_at for report in started],
        "container_ids": [report.container_id for report in started],
        "image_digests": [report.image_digest for report in started],
        "pulled_seconds": [report.pulled_seconds for report in started],
    }
    with connection.cursor(row_factory=class_row(Moved)) as cursor:
        return cursor.execute(QUERIES["start_runs"], parameters).fetchall()


def finish_runs(connection: Connection, endings: Sequence[tuple[Finished, Ending, str | None]]) -> list[Moved]:
    """Close held runs, end their leases, and move their tasks: to the end, or back to pending.

    Each entry is what was reported, what was decided, and the task's message.
    """
    if not endings:
        return []
    reports = [report for report, _, _ in endings]
    decided = [ending for _, ending, _ in endings]
    parameters: dict[str, Any] = {
        "run_ids": [report.run_id for report in reports],
        "epochs": [report.epoch for report in reports],
        "run_statuses": [ending.run_status for ending in decided],
        "task_statuses": [ending.task_status for ending in decided],
        "reasons": [ending.reason for ending in decided],
        "delays": [ending.delay for ending in decided],
        "exit_codes": [report.exit_code for report in reports],
        "error_msgs": [report.error_msg for report in reports],
        "task_error_msgs": [message for _, _, message in endings],
        "results": [report.result for report in reports],
        "started_ats": [report.started_at for report in reports],
        "finished_ats": [report.finished_at for report in reports],
        "image_digests": [report.image_digest for report in reports],
        "container_ids": [report.container_id for report in reports],
        "max_memory_mbs": [report.max_memory_mb for report in reports],
        "cpu_seconds": [report.cpu_seconds for report in reports],
        "pulled_seconds": [report.pulled_seconds for report in reports],
    }
    with connection.cursor(row_factory=class_row(Moved)) as cursor:
        return cursor.execute(QUERIES["finish_runs"], parameters).fetchall()


def claim_runs(
    connection: Connection, executor: Executor, run_ids: Sequence[UUID], *, lease: timedelta
) -> dict[UUID, int]:
    """Give the executor those of the runs that are queued; their epochs by id."""
    if not run_ids:
        return {}
    parameters = _of_executor(executor) | {"run_ids": list(run_ids), "lease": lease}
    rows = connection.execute(QUERIES["claim_runs"], parameters)
    return {row["run_id"]: row["epoch"] for row in rows}


def list_leases_of_engine(connection: Connection, engine_id: str) -> list[Lease]:
    with connection.cursor(row_factory=class_row(Lease)) as cursor:
        return cursor.execute(QUERIES["list_leases_of_engine"], {"engine_id": engine_id}).fetchall()


def take_over_leases(
    connection: Connection, executor: Executor, *, lease: timedelta, settle: timedelta
) -> set[UUID]:
    """Give the executor what its earlier boots held, and what ran out on its engine. Returns the runs' ids.

    Nothing runs out within `settle` after a start of the database or of the scheduler's HTTP side.
    """
    parameters = _of_executor(executor) | {"lease": lease, "settle": settle, "gap": BEAT_GAP}
    rows = connection.execute(QUERIES["take_over_leases"], parameters)
    return {row["id"] for row in rows}


def list_live_runs(connection: Connection, run_ids: Collection[UUID]) -> set[UUID]:
    """Those of the runs that are live. One that isn't never will be again."""
    if not run_ids:
        return set()
    rows = connection.execute(QUERIES["list_live_runs"], {"run_ids": list(run_ids)})
    return {row["id"] for row in rows}


def list_specs(connection: Connection, run_ids: Collection[UUID]) -> dict[UUID, TaskSpec]:
    if not run_ids:
        return {}
    with connection.cursor(row_factory=class_row(TaskSpec)) as cursor:
        rows = cursor.execute(QUERIES["list_specs"], {"run_ids": list(run_ids)})
        return {row.run_id: row for row in rows}


def measure_logs(connection: Connection, run_ids: Collection[UUID]) -> dict[UUID, StoredOutput]:
    """Of each run that was asked for, also of those that printed nothing yet."""
    empty = {run_id: StoredOutput(run_id=run_id, next_seq=0, stdout_bytes=0, stderr_bytes=0) for run_id in run_ids}
    if not run_ids:
        return empty
    with connection.cursor(row_factory=class_row(StoredOutput)) as cursor:
        rows = cursor.execute(QUERIES["measure_logs"], {"run_ids": list(run_ids)})
        return empty | {row.run_id: row for row in rows}


def list_images_due_within(connection: Connection, ahead: timedelta, *, limit: int) -> list[str]:
    """The images of tasks that start soon."""
    rows = connection.execute(QUERIES["list_images_due_within"], {"ahead": ahead, "limit": limit})
    return [row["image"] for row in rows]


def beat(connection: Connection, part: str) -> None:
    """Note that this part of the scheduler is at work."""
    connection.execute(QUERIES["beat"], {"name": part, "every": BEAT_EVERY, "gap": BEAT_GAP})


def list_parts(connection: Connection) -> list[Part]:
    with connection.cursor(row_factory=class_row(Part)) as cursor:
        return cursor.execute(QUERIES["list_parts"]).fetchall()


def _of_executor(executor: Executor) -> dict[str, Any]:
    return {"executor_id": executor.id, "boot_id": executor.boot_id, "engine_id": executor.engine_id}
