"""What a claimed run is to execute, as the scheduler's sync answer gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from libs.common.clock import parse_time


@dataclass(frozen=True, slots=True)
class TaskSpec:
    task_id: UUID
    run_id: UUID
    user_id: UUID
    number: int
    image: str
    command: str | None
    args: tuple[str, ...]
    entrypoint: tuple[str, ...] | None
    environment: Mapping[str, str]
    time_limit: timedelta
    stop_grace: timedelta
    cpus: float
    memory_mb: int
    pids: int
    network: str
    scheduled_at: datetime | None
    request_id: str | None


@dataclass(frozen=True, slots=True)
class StoredOutput:
    """How much of a run's output the scheduler has already, so that an adopter goes on behind it."""

    next_seq: int
    stdout_bytes: int
    stderr_bytes: int


def is_run_id(text: str) -> bool:
    """Whether the text is a UUID in its usual spelling, as all runs' ids are."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def read_task_spec(fields: Mapping[str, Any]) -> TaskSpec:
    """From the sync answer's `task`. KeyError or ValueError when it isn't one."""
    entrypoint = fields.get("entrypoint")
    scheduled_at = fields.get("scheduledAt")
    return TaskSpec(
        task_id=UUID(fields["taskId"]),
        run_id=UUID(fields["runId"]),
        user_id=UUID(fields["userId"]),
        number=int(fields["number"]),
        image=fields["image"],
        command=fields.get("command"),
        args=tuple(fields.get("args") or ()),
        entrypoint=None if entrypoint is None else tuple(entrypoint),
        environment=dict(fields.get("environment") or {}),
        time_limit=timedelta(seconds=fields["timeoutSeconds"]),
        stop_grace=timedelta(seconds=fields["stopGraceSeconds"]),
        cpus=float(fields["cpus"]),
        memory_mb=int(fields["memoryMb"]),
        pids=int(fields["pids"]),
        network=fields["network"],
        scheduled_at=parse_time(scheduled_at) if scheduled_at else None,
        request_id=fields.get("requestId"),
    )


def read_stored_output(fields: Mapping[str, Any] | None) -> StoredOutput | None:
    """From an adoption's `logs`; None when the scheduler didn't say."""
    if fields is None:
        return None
    return StoredOutput(
        next_seq=int(fields["nextSeq"]),
        stdout_bytes=int(fields["stdoutBytes"]),
        stderr_bytes=int(fields["stderrBytes"]),
    )
