"""The dispatch loop: the one way from a due task onto the broker.

One pass (`Dispatcher.run_once`): see how much room the executors have; lock that many due tasks, the most urgent
first; give each a run; commit; publish them all at once; mark what the broker confirmed. A crash between any two
of these is made up for by the sweep (docs/task-model.md, Crashes). Any number of replicas may do this at once.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import structlog

from libs.common import failpoints
from libs.common.messages import RunMessage
from libs.common.postgres import Connection, Pool, in_transaction, on_connection
from libs.common.publisher import Outgoing, Publishes
from libs.common.topology import RUNS_QUEUE
from services.scheduler import loop_store
from services.scheduler.loop_metrics import (
    DISPATCH_BATCH,
    DISPATCH_DURATION,
    DISPATCHED,
    OVERDUE,
    PUBLISH_FAILURES,
)
from services.scheduler.loop_store import Backlog, DueTask, QueuedRun

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchConfig:
    """`tick`: how often it looks without a wake-up. `claim_window`: recent claims make that much more room.

    `publish_within` and `claim_within`: after which the sweep publishes a run again; `claim_when_empty`: the same
    when no message waits at the broker, so that this run's is lost, or is with an executor that is stuck. All are
    less than what docs/task-model.md, Crashes, promises: the sweep looks every second, and may be late itself.
    `answer_within`: how long the broker is waited for before anything is made that it is to carry.
    """

    batch_size: int = 200
    tick: timedelta = timedelta(seconds=1)
    claim_window: timedelta = timedelta(seconds=2)
    answer_within: timedelta = timedelta(seconds=1)
    publish_timeout: timedelta = timedelta(seconds=5)
    publish_within: timedelta = timedelta(seconds=13)
    claim_within: timedelta = timedelta(seconds=30)
    claim_when_empty: timedelta = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass did, and how long to sleep unless something wakes the loop earlier."""

    dispatched: int
    sleep: timedelta


class Dispatcher:
    def __init__(
        self,
        *,
        pool: Pool,
        publisher: Publishes,
        config: DispatchConfig,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._publisher = publisher
        self._config = config
        self._claims = RecentClaims(config.claim_window, monotonic)

    def run_once(self) -> Pass:
        """Dispatch what is due, as far as there is room."""
        backlog = on_connection(self._pool, loop_store.read_backlog)
        OVERDUE.set(_overdue_seconds(backlog))
        room = decide_room(backlog, claimed=self._claims.note(backlog.claims_total))
        limit = min(room, self._config.batch_size)
        if limit == 0 or not _is_due(backlog):
            return Pass(0, decide_sleep(backlog, has_room=limit > 0, tick=self._config.tick))
        # What is taken and can't be published waits for the sweep; another replica may publish it at once.
        if not self._publisher.answers(timeout_seconds=self._config.answer_within.total_seconds()):
            return Pass(0, self._config.tick)
        with DISPATCH_DURATION.time():
            runs = in_transaction(self._pool, lambda connection: self._queue(connection, limit))
            self._publish(runs)
        # There may be more, and another pass costs less than a late start.
        return Pass(len(runs), timedelta(0) if runs else self._config.tick)

    def publish_again(self, *, limit: int) -> int:
        """Publish queued runs whose message never left, or was not claimed in time. Returns how many."""
        config = self._config
        waiting = self._publisher.count(RUNS_QUEUE, timeout_seconds=config.answer_within.total_seconds())
        if waiting is None:
            return 0
        runs = in_transaction(
            self._pool,
            lambda connection: loop_store.take_runs_to_publish(
                connection,
                publish_within=config.publish_within,
                claim_within=None if waiting else config.claim_when_empty,
                limit=limit,
            ),
        )
        return self._publish(runs)

    def _queue(self, connection: Connection, limit: int) -> list[QueuedRun]:
        due = loop_store.lock_due_tasks(connection, limit=limit)
        if not due:
            return []
        runs = [_to_run(task) for task in due]
        loop_store.queue_tasks(
            connection, due, [run.run_id for run in runs], publish_within=self._config.publish_within
        )
        failpoints.reach("run_not_committed")
        return runs

    def _publish(self, runs: Sequence[QueuedRun]) -> int:
        """Outside any transaction: the broker may take its time. Returns how many it confirmed."""
        if not runs:
            return 0
        failpoints.reach("run_not_published")
        confirmed = self._publisher.publish(
            [Outgoing(RunMessage(run.run_id, run.task_id), run.request_id) for run in runs],
            timeout_seconds=self._config.publish_timeout.total_seconds(),
        )
        published = [run for run in runs if str(run.run_id) in confirmed]
        failpoints.reach("run_published")
        self._mark_published([run.run_id for run in published])
        self._note_failures([run.run_id for run in runs if str(run.run_id) not in confirmed])
        for run in published:
            log.info(
                "run_dispatched",
                run_id=str(run.run_id),
                task_id=str(run.task_id),
                request_id=run.request_id,
            )
        DISPATCHED.inc(len(published))
        DISPATCH_BATCH.observe(len(runs))
        return len(published)

    def _note_failures(self, run_ids: Sequence[UUID]) -> None:
        """Whoever reaches the broker publishes them, without waiting for this replica's next chance."""
        if not run_ids:
            return
        PUBLISH_FAILURES.inc(len(run_ids))
        log.warning("runs_not_published", runs=len(run_ids))
        on_connection(self._pool, lambda connection: loop_store.leave_to_others(connection, run_ids))

    def _mark_published(self, run_ids: Sequence[UUID]) -> None:
        if not run_ids:
            return
        within = self._config.claim_within
        on_connection(
            self._pool, lambda connection: loop_store.mark_published(connection, run_ids, claim_within=within)
        )


class RecentClaims:
    """How many runs were claimed lately, from a total that only grows: how fast the executors drain the queue."""

    def __init__(self, window: timedelta, monotonic: Callable[[], float]) -> None:
        self._window_seconds = window.total_seconds()
        self._monotonic = monotonic
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, total: int) -> int:
        """Take the total as it is now; the growth within the window. A total that fell begins anew."""
        now = self._monotonic()
        if self._seen and total < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((now, total))
        # The last one from before the window is where the window begins.
        while len(self._seen) > 1 and self._seen[1][0] <= now - self._window_seconds:
            self._seen.popleft()
        return total - self._seen[0][1]


class DispatchLoop:
    """Runs passes in a thread: at the next due time, at a wake-up, and every tick."""

    def __init__(self, *, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._woken = threading.Event()

    def wake(self) -> None:
        self._woken.set()

    def run_once(self) -> timedelta:
        """One pass; how long to wait then, cut short by a wake-up that came meanwhile."""
        self._woken.clear()
        return self._dispatcher.run_once().sleep

    def wait(self, pause: timedelta) -> None:
        self._woken.wait(pause.total_seconds())


def decide_room(backlog: Backlog, *, claimed: int) -> int:
    """How many more runs may be on their way: as many as there are slots, and as are claimed in a short while.

    So the broker's queue stays short, and yet no slot waits for the next pass.
    """
    if backlog.slots == 0:
        return 0
    return max(backlog.slots + claimed - backlog.outstanding, 0)


def decide_sleep(backlog: Backlog, *, has_room: bool, tick: timedelta) -> timedelta:
    """Until the next task is due, but not longer than a tick; a tick when something is due and can't go."""
    if backlog.due_in is None or not has_room or _is_due(backlog):
        return tick
    return min(backlog.due_in, tick)


def _is_due(backlog: Backlog) -> bool:
    return backlog.due_in is not None and backlog.due_in <= timedelta(0)


def _overdue_seconds(backlog: Backlog) -> float:
    return 0.0 if backlog.due_in is None else max(-backlog.due_in.total_seconds(), 0.0)


def _to_run(task: DueTask) -> QueuedRun:
    return QueuedRun(run_id=uuid.uuid4(), task_id=task.task_id, request_id=task.request_id)
