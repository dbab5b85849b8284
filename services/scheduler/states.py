"""The states of tasks and runs and every move between them (docs/task-model.md)."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class TaskStatus(StrEnum):
    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class RunStatus(StrEnum):
    QUEUED = "queued"
    CLAIMED = "claimed"
    RUNNING = "running"
    STOPPING = "stopping"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"


class Reason(StrEnum):
    """Why a task or a run failed."""

    EXIT_NONZERO = "exit_nonzero"
    TIMEOUT = "timeout"
    OOM_KILLED = "oom_killed"
    IMAGE_NOT_FOUND = "image_not_found"
    IMAGE_PULL_FAILED = "image_pull_failed"
    INVALID_COMMAND = "invalid_command"
    ENGINE_ERROR = "engine_error"
    EXECUTOR_LOST = "executor_lost"
    QUEUE_TTL_EXPIRED = "queue_ttl_expired"


class Network(StrEnum):
    EGRESS = "egress"
    NONE = "none"


class OnExecutorLost(StrEnum):
    """What becomes of a run whose engine is silent for too long: given up and tried again, or waited for."""

    RETRY = "retry"
    HOLD = "hold"


class ExecutorState(StrEnum):
    """Whether it takes runs, or only finishes those that it has."""

    ACTIVE = "active"
    DRAINING = "draining"


class StopReason(StrEnum):
    CANCELLED = "cancelled"


class Outcome(StrEnum):
    """How an executor says that a run ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"


class LogStream(StrEnum):
    STDOUT = "stdout"
    STDERR = "stderr"


LOG_STREAM_NUMBERS: Final = {LogStream.STDOUT: 1, LogStream.STDERR: 2}

TERMINAL_TASK: Final = frozenset({TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED})
TERMINAL_RUN: Final = frozenset({RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.LOST})
LIVE_RUN: Final = frozenset(RunStatus) - TERMINAL_RUN
HELD_RUN: Final = LIVE_RUN - {RunStatus.QUEUED}

TASK_MOVES: Final[dict[TaskStatus, frozenset[TaskStatus]]] = {
    TaskStatus.PENDING: frozenset({TaskStatus.QUEUED, TaskStatus.FAILED, TaskStatus.CANCELLED}),
    TaskStatus.QUEUED: frozenset({TaskStatus.RUNNING, TaskStatus.PENDING, *TERMINAL_TASK}),
    TaskStatus.RUNNING: frozenset({TaskStatus.PENDING, *TERMINAL_TASK}),
    TaskStatus.COMPLETED: frozenset(),
    TaskStatus.FAILED: frozenset(),
    TaskStatus.CANCELLED: frozenset(),
}

RUN_MOVES: Final[dict[RunStatus, frozenset[RunStatus]]] = {
    RunStatus.QUEUED: frozenset({RunStatus.CLAIMED, RunStatus.CANCELLED}),
    RunStatus.CLAIMED: frozenset({RunStatus.RUNNING, RunStatus.STOPPING, *TERMINAL_RUN}),
    RunStatus.RUNNING: frozenset({RunStatus.STOPPING, *TERMINAL_RUN}),
    RunStatus.STOPPING: TERMINAL_RUN,
    RunStatus.COMPLETED: frozenset(),
    RunStatus.FAILED: frozenset(),
    RunStatus.CANCELLED: frozenset(),
    RunStatus.LOST: frozenset(),
}
