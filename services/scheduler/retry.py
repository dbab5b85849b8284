"""What becomes of a task whose run was lost or has ended. Pure decisions (docs/task-model.md)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from services.scheduler.states import Outcome, Reason, RunStatus, StopReason, TaskStatus

LOST_LIMIT = 5
LOST_BACKOFF = timedelta(seconds=5)

LOST_TOO_OFTEN = (
    f"The executors that ran this task were lost more than {LOST_LIMIT} times, so it was given up. "
    "Look at the executors' hosts and logs, then create the task again."
)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a live run and its task go on: `task_status` is terminal, or pending for another run after `delay`."""

    run_status: RunStatus
    task_status: TaskStatus
    reason: Reason | None
    delay: timedelta = timedelta(0)


def decide_ending(
    outcome: Outcome,
    *,
    reason: str | None,
    stop_reason: str | None,
    is_deleted: bool,
    lost_count: int,
) -> Ending:
    """What a finished report does. `lost_count` is how many runs of the task were lost before this one.

    A stop request wins over what the container did; a lost run is made up for, up to LOST_LIMIT times.
    """
    is_unwanted = stop_reason == StopReason.CANCELLED or is_deleted
    if outcome == Outcome.LOST:
        if is_unwanted:
            return Ending(RunStatus.LOST, TaskStatus.CANCELLED, None)
        return _make_up_for_lost(lost_count)
    if is_unwanted or outcome == Outcome.CANCELLED:
        return Ending(RunStatus.CANCELLED, TaskStatus.CANCELLED, None)
    if outcome == Outcome.COMPLETED:
        return Ending(RunStatus.COMPLETED, TaskStatus.COMPLETED, None)
    return Ending(RunStatus.FAILED, TaskStatus.FAILED, read_reason(reason))


def _make_up_for_lost(lost_count: int) -> Ending:
    if lost_count >= LOST_LIMIT:
        return Ending(RunStatus.LOST, TaskStatus.FAILED, Reason.EXECUTOR_LOST)
    return Ending(RunStatus.LOST, TaskStatus.PENDING, None, delay=LOST_BACKOFF * lost_count)


def read_reason(reason: str | None) -> Reason:
    """A failure always has a reason; one that this code doesn't know came from a newer executor's engine."""
    try:
        return Reason(reason or "")
    except ValueError:
        return Reason.ENGINE_ERROR
