"""Why a task isn't running yet, in words for its owner. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from libs.common.clock import format_time
from services.scheduler.states import RunStatus, TaskStatus

# An executor that was silent for longer doesn't count as one that could take a task.
EXECUTOR_SEEN_WITHIN = timedelta(seconds=15)


@dataclass(frozen=True, slots=True)
class Waiting:
    """`code` is stable, for programs; `text` says what the task waits for."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the executors that were heard of lately have."""

    executors: int
    slots: int
    running: int

    @property
    def free(self) -> int:
        return max(self.slots - self.running, 0)


def decide_waiting(
    *,
    status: TaskStatus,
    due_at: datetime,
    attempts: int,
    max_attempts: int,
    lost_count: int,
    run_status: RunStatus | None,
    is_published: bool,
    capacity: Capacity,
    now: datetime,
) -> Waiting | None:
    """None when the task runs or has ended."""
    if status == TaskStatus.PENDING and due_at > now and attempts + lost_count > 0:
        return _back_off(due_at=due_at, attempts=attempts, max_attempts=max_attempts, lost_count=lost_count)
    if status == TaskStatus.PENDING:
        return _wait_for_dispatch(due_at=due_at, capacity=capacity, now=now)
    if status == TaskStatus.QUEUED:
        return _wait_for_start(run_status=run_status, is_published=is_published, capacity=capacity)
    return None


def _back_off(*, due_at: datetime, attempts: int, max_attempts: int, lost_count: int) -> Waiting:
    if attempts == 0:
        why = "Its executor was lost"
    elif lost_count == 0:
        why = f"Attempt {attempts} of {max_attempts} failed"
    else:
        why = f"Attempt {attempts} of {max_attempts} failed, or the executor of the next one was lost"
    return Waiting("backoff", f"{why}; it is tried again at {format_time(due_at)}.")


def _wait_for_dispatch(*, due_at: datetime, capacity: Capacity, now: datetime) -> Waiting:
    if due_at > now:
        return Waiting("scheduled", f"It starts at {format_time(due_at)}.")
    if capacity.executors == 0:
        return _no_executor()
    if capacity.free == 0:
        return Waiting(
            "slots_busy", f"All of {_describe(capacity)} are busy; earlier and more urgent tasks go first."
        )
    return Waiting("dispatch", "It is due and about to be dispatched.")


def _wait_for_start(*, run_status: RunStatus | None, is_published: bool, capacity: Capacity) -> Waiting:
    if run_status == RunStatus.STOPPING:
        return Waiting("stopping", "It is being stopped.")
    if run_status == RunStatus.CLAIMED:
        return Waiting("preparing", "An executor pulls its image and creates its container.")
    if capacity.executors == 0:
        return _no_executor()
    if not is_published:
        return Waiting("broker", "It is being handed to the broker; if that is down, as soon as it is back.")
    return Waiting("slot", f"The next free slot of {_describe(capacity)} takes it.")


def _no_executor() -> Waiting:
    return Waiting("no_executor", "No executor is connected. An operator can start one: make scale N=1.")


def _describe(capacity: Capacity) -> str:
    slots = "1 slot" if capacity.slots == 1 else f"{capacity.slots} slots"
    executors = "1 executor" if capacity.executors == 1 else f"{capacity.executors} executors"
    return f"the {slots} of {executors}"
