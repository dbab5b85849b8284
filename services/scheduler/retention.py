"""The retention loop: finished tasks go after a time, with their runs and output, in small batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import structlog

from libs.common.postgres import Pool, in_transaction
from services.scheduler import loop_store
from services.scheduler.loop_metrics import RETENTION_DURATION, RETENTION_LAG, RETENTION_REMOVED
from services.scheduler.states import TaskStatus

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionConfig:
    """`ages`: how long after its end a task of a status is kept; for ever when the status isn't in it.

    A batch is made so large that it takes about `batch_time`: a task may have no output, or megabytes of it.
    """

    ages: Mapping[TaskStatus, timedelta]
    tick: timedelta = timedelta(seconds=10)
    batch_time: timedelta = timedelta(seconds=0.2)
    least: int = 10
    most: int = 1000


class Retention:
    def __init__(
        self, *, pool: Pool, config: RetentionConfig, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._pool = pool
        self._config = config
        self._monotonic = monotonic
        self._size = config.least

    def run_once(self) -> timedelta:
        """Remove at most one batch of each status; how long to wait then.

        While there is more it rests as long as it has worked: it is in nobody's way, and faster than tasks come.
        """
        began = self._monotonic()
        has_more = [self._remove(status, age) for status, age in self._config.ages.items()]
        if not any(has_more):
            return self._config.tick
        return timedelta(seconds=self._monotonic() - began)

    def _remove(self, status: TaskStatus, age: timedelta) -> bool:
        """Whether there may be more."""
        size, self._size = self._size, self._config.least
        began = self._monotonic()
        # Once: a batch that fails for its size is tried again by the next pass, with the smallest.
        count = in_transaction(
            self._pool,
            lambda connection: loop_store.delete_finished_tasks(connection, status, age=age, limit=size),
            attempts=1,
        )
        took = timedelta(seconds=self._monotonic() - began)
        self._size = decide_batch_size(size, took=took, is_full=count == size, config=self._config)
        if count:
            RETENTION_REMOVED.labels(status).inc(count)
            RETENTION_DURATION.observe(took.total_seconds())
            log.info("finished_tasks_removed", status=status, tasks=count)
        with self._pool.connection() as connection:
            lag = loop_store.read_retention_lag(connection, status, age=age)
        RETENTION_LAG.labels(status).set(lag.total_seconds())
        return count == size


def decide_batch_size(size: int, *, took: timedelta, is_full: bool, config: RetentionConfig) -> int:
    """The next batch's: half when this one took much too long, twice when it was quick and full."""
    if took > config.batch_time * 2:
        return max(size // 2, config.least)
    if is_full and took < config.batch_time / 2:
        return min(size * 2, config.most)
    return size
