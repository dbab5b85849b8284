"""What becomes of a task whose run was lost, failed or ended. Pure decisions (docs/task-model.md, Retries)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

from services.scheduler.states import Outcome, Reason, RunStatus, StopReason, TaskStatus

LOST_LIMIT = 5
LOST_BACKOFF = timedelta(seconds=5)

# What another attempt may mend. An image that isn't there and a command that can't be one stay so.
RETRIED_REASONS = frozenset(
    {
        Reason.EXIT_NONZERO,
        Reason.TIMEOUT,
        Reason.OOM_KILLED,
        Reason.IMAGE_PULL_FAILED,
        Reason.ENGINE_ERROR,
    }
)

# A backoff is shortened by up to this share, at random: what failed together must not come back together.
BACKOFF_SPREAD = 0.25

LOST_TOO_OFTEN = (
    f"The executors that ran this task were lost more than {LOST_LIMIT} times, so it was given up. "
    "Look at the executors' hosts and logs, then create the task again."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """What a task says about further attempts. `on_exit_codes` None: after all RETRIED_REASONS."""

    max_attempts: int
    backoff: timedelta
    max_backoff: timedelta
    on_exit_codes: Collection[int] | None


@dataclass(frozen=True, slots=True)
class Ending:
    """How a live run and its task go on: `task_status` is terminal, or pending for another run after `delay`.

    `reason` is the run's, and the task's when that fails with it.
    """

    run_status: RunStatus
    task_status: TaskStatus
    reason: Reason | None
    delay: timedelta = timedelta(0)


def decide_ending(
    outcome: Outcome,
    *,
    reason: str | None,
    exit_code: int | None,
    stop_reason: str | None,
    is_deleted: bool,
    attempts: int,
    lost_count: int,
    policy: RetryPolicy,
    chance: float,
) -> Ending:
    """What a finished report does.

    `attempts` is how many of the task's runs count as its own, this one included; `lost_count` how many were lost
    before this one; `chance`, from 0 to 1, spreads the backoff. A stop request wins over what the container did; a
    lost run is made up for, up to LOST_LIMIT times; a failed one is tried again as the task says.
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
    known = read_reason(reason)
    if attempts < policy.max_attempts and decide_retry(known, exit_code, policy=policy):
        delay = decide_backoff(policy, failures=attempts, chance=chance)
        return Ending(RunStatus.FAILED, TaskStatus.PENDING, known, delay)
    return Ending(RunStatus.FAILED, TaskStatus.FAILED, known)


def decide_retry(reason: Reason, exit_code: int | None, *, policy: RetryPolicy) -> bool:
    """Whether a failure is one to try again after, while attempts are left."""
    if policy.on_exit_codes is not None:
        return exit_code is not None and exit_code in policy.on_exit_codes
    return reason in RETRIED_REASONS


def decide_backoff(policy: RetryPolicy, *, failures: int, chance: float) -> timedelta:
    """How long to wait after the so-manieth failure (from 1): doubled with each, up to the most, then spread."""
    whole = min(policy.backoff * (1 << (failures - 1)), policy.max_backoff)
    return whole * (1 - BACKOFF_SPREAD * chance)


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
