"""The sweep loop: what crashes, cuts and deletions left behind is found and put right.

Each duty is one small transaction that skips what others have in hand, so replicas may sweep at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from libs.common.clock import utc_now
from libs.common.errors import Unavailable
from libs.common.postgres import Connection, Pool, in_transaction
from services.scheduler import idempotency, list_store, loop_store, quota_store, run_store
from services.scheduler.dispatch import Dispatcher
from services.scheduler.endings import Closed, close_runs, observe_closed
from services.scheduler.loop_metrics import EXECUTORS, EXPIRED, REPUBLISHED, RUNS_LOST, SLOTS, SLOTS_USED, TASKS
from services.scheduler.loop_store import ExpiredTask
from services.scheduler.run_store import Finished, LockedRun
from services.scheduler.states import TERMINAL_TASK, Outcome
from services.scheduler.store import read_capacity
from services.scheduler.users_client import UsersClient

log = structlog.get_logger()

_EXPIRED_MESSAGE = (
    "No executor had taken it when its queueTtlSeconds were over. "
    "Give it more time or a higher priority, or the system more slots."
)
_LOST_MESSAGE = "The engine that ran it was silent for too long and was given up."


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepConfig:
    """`tick`: between two looks at what must be published again or has expired. `slow_tick`: between two of
    everything else.

    `executor_silence`: after which an engine is given up. `deletions_overlap`: how far
    back each look at the deleted users goes beyond the one before.
    """

    tick: timedelta = timedelta(seconds=1)
    slow_tick: timedelta = timedelta(seconds=5)
    executor_silence: timedelta = timedelta(seconds=300)
    executor_forgotten: timedelta = timedelta(days=1)
    deletions_overlap: timedelta = timedelta(seconds=60)
    deletions_first: timedelta = timedelta(days=1)
    batch_size: int = 500
    counts_batch_size: int = 100_000


class Sweeper:
    def __init__(
        self,
        *,
        pool: Pool,
        dispatcher: Dispatcher,
        users: UsersClient,
        config: SweepConfig,
        wake_dispatch: Callable[[], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._dispatcher = dispatcher
        self._users = users
        self._config = config
        self._wake_dispatch = wake_dispatch
        self._monotonic = monotonic
        self._slow_at = float("-inf")
        self._deletions_since: datetime | None = None

    def run_once(self) -> timedelta:
        """Do what is due of the duties; how long to wait then."""
        now = self._monotonic()
        self.publish_again()
        self.expire_tasks()
        if now - self._slow_at >= self._config.slow_tick.total_seconds():
            self._slow_at = now
            self.close_lost_runs()
            self.purge_deleted_tasks()
            self.add_up_counts()
            self.forget_idempotency_keys()
            self.forget_executors()
            self.cancel_tasks_of_deleted_users()
            self.forget_creations()
            self.measure()
        return self._config.tick

    def publish_again(self) -> int:
        """Runs whose message never left, or was not claimed in time."""
        count = self._dispatcher.publish_again(limit=self._config.batch_size)
        if count:
            REPUBLISHED.inc(count)
            log.warning("runs_published_again", runs=count)
        return count

    def expire_tasks(self) -> int:
        """Waiting tasks whose queueTtlSeconds are over."""
        total = 0
        while True:
            expired = in_transaction(self._pool, self._expire_tasks)
            total += len(expired)
            for task in expired:
                log.info("task_expired", task_id=str(task.id), request_id=task.request_id)
            if len(expired) < self._config.batch_size:
                break
        EXPIRED.inc(total)
        return total

    def close_lost_runs(self) -> int:
        """Runs of engines that were silent for too long: promise 2's exception."""
        closed = in_transaction(self._pool, self._close_lost_runs)
        observe_closed(closed)
        if closed:
            RUNS_LOST.inc(len(closed))
            log.error("runs_given_up", runs=len(closed))
            self._wake_dispatch()
        return len(closed)

    def purge_deleted_tasks(self) -> int:
        """Tasks that were deleted while they ran, whose run has closed since."""
        limit = self._config.batch_size
        count = in_transaction(
            self._pool, lambda connection: loop_store.purge_deleted_tasks(connection, limit=limit)
        )
        if count:
            log.info("deleted_tasks_purged", tasks=count)
        return count

    def add_up_counts(self) -> None:
        """So that whoever asks how many tasks there are has few changes to add."""
        limit = self._config.counts_batch_size
        in_transaction(self._pool, lambda connection: list_store.add_up_task_counts(connection, limit=limit))

    def forget_idempotency_keys(self) -> int:
        limit = self._config.batch_size
        return in_transaction(self._pool, lambda connection: idempotency.forget_keys(connection, limit=limit))

    def cancel_tasks_of_deleted_users(self) -> int:
        """Waiting tasks of users that the users service says were deleted."""
        since = self._deletions_since or utc_now() - self._config.deletions_first
        asked_at = utc_now()
        try:
            deletions = self._users.list_deletions(since)
        except Unavailable:
            log.warning("deletions_unknown")
            return 0
        user_ids = {deletion.user_id for deletion in deletions}
        count = self._cancel_all(user_ids) if user_ids else 0
        if user_ids:
            in_transaction(self._pool, lambda connection: quota_store.forget_quotas(connection, user_ids))
        self._deletions_since = asked_at - self._config.deletions_overlap
        return count

    def forget_creations(self) -> int:
        """What a quota has counted and needs no more."""
        return in_transaction(self._pool, quota_store.forget_creations)

    def forget_executors(self) -> int:
        silence = self._config.executor_forgotten
        return in_transaction(
            self._pool, lambda connection: loop_store.forget_executors(connection, silence=silence)
        )

    def measure(self) -> None:
        """Set the gauges."""
        with self._pool.connection() as connection:
            counts = list_store.count_tasks(connection, None)
            capacity = read_capacity(connection)
        for status in set(counts) - TERMINAL_TASK:
            TASKS.labels(status).set(counts[status])
        EXECUTORS.set(capacity.executors)
        SLOTS.set(capacity.slots)
        SLOTS_USED.set(capacity.running)

    def _expire_tasks(self, connection: Connection) -> list[ExpiredTask]:
        return loop_store.expire_tasks(connection, error_msg=_EXPIRED_MESSAGE, limit=self._config.batch_size)

    def _close_lost_runs(self, connection: Connection) -> list[Closed]:
        lost = run_store.lock_lost_runs(
            connection, silence=self._config.executor_silence, limit=self._config.batch_size
        )
        return close_runs(connection, [(run, _report_lost(run)) for run in lost])

    def _cancel_all(self, user_ids: set[UUID]) -> int:
        limit = self._config.batch_size
        total = 0
        while True:
            count = in_transaction(
                self._pool,
                lambda connection: loop_store.cancel_waiting_tasks_of(connection, user_ids, limit=limit),
            )
            total += count
            if count < limit:
                break
        if total:
            log.info("tasks_of_deleted_users_cancelled", tasks=total)
        return total


def _report_lost(run: LockedRun) -> Finished:
    return Finished(
        run_id=run.run_id,
        epoch=run.epoch,
        outcome=Outcome.LOST,
        reason=None,
        exit_code=None,
        error_msg=_LOST_MESSAGE,
        result=None,
        started_at=None,
        finished_at=None,
        image_digest=None,
        container_id=None,
        max_memory_mb=None,
    )
