"""Why a task isn't running yet, in words for its owner. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from libs.common.clock import format_time
from libs.common.topology import DEFAULT_POOL
from services.scheduler.states import RunStatus, TaskStatus

_COUNTED = 1000

# An executor that was silent for longer doesn't count as one that could take a task.
EXECUTOR_SEEN_WITHIN = timedelta(seconds=15)


@dataclass(frozen=True, slots=True)
class Waiting:
    """`code` is stable, for programs; `text` says what the task waits for."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a pool's executors have that were heard of lately; the drained ones are only counted.

    `outstanding`: runs that wait on the broker.
    """

    executors: int
    slots: int
    running: int
    pool: str = DEFAULT_POOL
    draining: int = 0
    outstanding: int = 0

    @property
    def free(self) -> int:
        return max(self.slots - self.running, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """What may hold a task back: its user's quota and its concurrency group, and what is under way of both."""

    quota: int | None = None
    user_runs: int = 0
    concurrency_key: str = ""
    concurrency_limit: int = 0
    group_runs: int = 0

    @property
    def is_over_quota(self) -> bool:
        return self.quota is not None and self.user_runs >= self.quota

    @property
    def is_group_full(self) -> bool:
        return self.concurrency_limit > 0 and self.group_runs >= self.concurrency_limit


NO_HOLD = Hold()


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
    hold: Hold = NO_HOLD,
    ahead: int | None = None,
    is_pulling: bool = False,
) -> Waiting | None:
    """None when the task runs or has ended. `ahead`: how many go before it, None when that wasn't counted."""
    if status == TaskStatus.PENDING and due_at > now and attempts + lost_count > 0:
        return _back_off(due_at=due_at, attempts=attempts, max_attempts=max_attempts, lost_count=lost_count)
    if status == TaskStatus.PENDING and due_at > now:
        return Waiting("scheduled", f"It starts at {format_time(due_at)}.")
    if status == TaskStatus.PENDING:
        return _wait_for_own(hold) or _wait_for_dispatch(capacity=capacity, ahead=ahead)
    if status == TaskStatus.QUEUED:
        return _wait_for_start(
            run_status=run_status, is_published=is_published, is_pulling=is_pulling, capacity=capacity
        )
    return None


def _back_off(*, due_at: datetime, attempts: int, max_attempts: int, lost_count: int) -> Waiting:
    if attempts == 0:
        why = "Its executor was lost"
    elif lost_count == 0:
        why = f"Attempt {attempts} of {max_attempts} failed"
    else:
        why = f"Attempt {attempts} of {max_attempts} failed, or the executor of the next one was lost"
    return Waiting("backoff", f"{why}; it is tried again at {format_time(due_at)}.")


def _wait_for_own(hold: Hold) -> Waiting | None:
    """It is its own user's tasks that have to end first."""
    if hold.is_over_quota:
        return Waiting("quota", f"The quota is {hold.quota} at a time, and {_are_under_way(hold.user_runs)}.")
    if hold.is_group_full:
        return Waiting(
            "concurrency",
            f"At most {hold.concurrency_limit} of the concurrency key {hold.concurrency_key} may run at a time, "
            f"and {_are_under_way(hold.group_runs)}.",
        )
    return None


def _wait_for_dispatch(*, capacity: Capacity, ahead: int | None) -> Waiting:
    if capacity.executors == 0:
        return _no_executor(capacity)
    if ahead == 0 and capacity.free == 0:
        return Waiting("slot", f"It is next: a free slot among {_describe(capacity)} takes it.")
    if ahead or capacity.free == 0:
        return Waiting("behind_others", f"{_count_others(ahead)} before it to {_describe(capacity)}.")
    return Waiting("dispatch", "It is due and about to be dispatched.")


def _wait_for_start(
    *, run_status: RunStatus | None, is_published: bool, is_pulling: bool, capacity: Capacity
) -> Waiting:
    if run_status == RunStatus.STOPPING:
        return Waiting("stopping", "It is being stopped.")
    if run_status == RunStatus.CLAIMED and is_pulling:
        return Waiting("pulling", "Its image is being pulled.")
    if run_status == RunStatus.CLAIMED:
        return Waiting("preparing", "An executor creates its container.")
    if capacity.executors == 0:
        return _no_executor(capacity)
    if not is_published:
        return Waiting("broker", "It is being handed to the broker; if that is down, as soon as it is back.")
    return Waiting("slot", f"The next free slot of {_describe(capacity)} takes it.")


def _no_executor(capacity: Capacity) -> Waiting:
    pool = "" if capacity.pool == DEFAULT_POOL else f" of the pool {capacity.pool}"
    if capacity.draining:
        return Waiting("no_executor", f"All executors{pool} are being drained; they take no more tasks.")
    hint = " An operator can start one: make scale N=1." if capacity.pool == DEFAULT_POOL else ""
    return Waiting("no_executor", f"No executor{pool} is connected.{hint}")


def _are_under_way(runs: int) -> str:
    return "1 is under way" if runs == 1 else f"{runs} are under way"


def _count_others(ahead: int | None) -> str:
    if not ahead:
        return "Earlier and more urgent tasks go"
    if ahead == 1:
        return "1 other task goes"
    return f"{ahead} other tasks go" if ahead <= _COUNTED else f"More than {_COUNTED} other tasks go"


def _describe(capacity: Capacity) -> str:
    slots = "1 slot" if capacity.slots == 1 else f"{capacity.slots} slots"
    executors = "1 executor" if capacity.executors == 1 else f"{capacity.executors} executors"
    return f"the {slots} of {executors}"
