"""The dispatch loop: the one way from a due task onto the broker.

One pass (`Dispatcher.run_once`): see how much room the executors have; decide whose tasks get it (`shares.py`);
lock those; give each a run; commit; publish them all at once; mark what the broker confirmed. A crash between any
two of these is made up for by the sweep (docs/task-model.md, Crashes). Any number of replicas may do this: they
take turns at the part before the commit, a few milliseconds each.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import structlog

from libs.common import failpoints
from libs.common.messages import RunMessage
from libs.common.postgres import Connection, Pool, in_transaction, on_connection
from libs.common.publisher import Outgoing, Publishes
from libs.common.topology import run_queue
from services.scheduler import dispatch_store
from services.scheduler.dispatch_store import Ahead, DueTask, QueuedRun
from services.scheduler.loop_metrics import (
    DISPATCH_BATCH,
    DISPATCH_DURATION,
    DISPATCHED,
    OVERDUE,
    PUBLISH_FAILURES,
)
from services.scheduler.shares import Lane, Room, decide_room, decide_shares

log = structlog.get_logger()

_SPARE_LANES = 20
_REST = timedelta(milliseconds=20)


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchConfig:
    """`tick`: how often it looks without a wake-up. `claim_window`: over how long claims are counted.

    `publish_within` and `claim_within`: after which the sweep publishes a run again; `lost_within`: the same when
    its message can't wait at the broker any more, so that it is lost, or is with an executor that is stuck. All
    are less than what docs/task-model.md, Crashes, promises: the sweep looks every second, and may be late itself.
    `answer_within`: how long the broker is waited for before anything is made that it is to carry. `arrivals`: how
    much that has become due is sorted into the line in one pass. `default_running`: of how many runs of users
    without a quota of their own may be under way; None: any number.
    """

    batch_size: int = 200
    arrivals: int = 2000
    default_running: int | None = None
    tick: timedelta = timedelta(seconds=1)
    claim_window: timedelta = timedelta(seconds=2)
    answer_within: timedelta = timedelta(seconds=1)
    publish_timeout: timedelta = timedelta(seconds=5)
    publish_within: timedelta = timedelta(seconds=13)
    claim_within: timedelta = timedelta(seconds=30)
    lost_within: timedelta = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass did, and how long to sleep unless something wakes the loop earlier."""

    dispatched: int
    sleep: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class _Queued:
    """What one transaction did. `has_room`: more could go; `is_more`: another pass may find something at once."""

    runs: Sequence[QueuedRun] = ()
    has_room: bool
    is_more: bool


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
        self._monotonic = monotonic
        self._claims: defaultdict[str, RecentClaims] = defaultdict(
            lambda: RecentClaims(config.claim_window, monotonic)
        )

    def run_once(self) -> Pass:
        """Dispatch what is due, as far as there is room."""
        ahead = on_connection(self._pool, dispatch_store.look_ahead)
        looked_at = self._monotonic()
        OVERDUE.set(_overdue_seconds(ahead))
        if ahead.overdue is None:
            return Pass(0, decide_sleep(ahead.due_in, is_held_back=False, has_room=True, tick=self._config.tick))
        # What is taken and can't be published waits for the sweep; another replica may publish it at once.
        if not self._publisher.answers(timeout_seconds=self._config.answer_within.total_seconds()):
            return Pass(0, self._config.tick)
        with DISPATCH_DURATION.time():
            queued = in_transaction(self._pool, self._queue)
            self._publish(queued.runs)
        if queued.is_more:
            # Another pass costs less than a late start.
            return Pass(len(queued.runs), timedelta(0))
        # The pass took its time, and the next due time came that much nearer.
        took = timedelta(seconds=self._monotonic() - looked_at)
        due_in = None if ahead.due_in is None else ahead.due_in - took
        sleep = decide_sleep(due_in, is_held_back=True, has_room=queued.has_room, tick=self._config.tick)
        return Pass(len(queued.runs), sleep)

    def publish_again(self, *, limit: int) -> int:
        """Publish queued runs whose message never left, or was not claimed in time. Returns how many."""
        config = self._config
        waiting = self._count_waiting()
        if waiting is None:
            return 0
        runs = in_transaction(
            self._pool,
            lambda connection: dispatch_store.take_runs_to_publish(
                connection,
                publish_within=config.publish_within,
                lost_within=config.lost_within,
                empty_pools=[pool for pool, count in waiting.items() if count == 0],
                limit=limit,
            ),
        )
        return self._publish(runs)

    def _count_waiting(self) -> dict[str, int] | None:
        """The messages at the broker, for each pool that has queued runs; None when it doesn't say."""
        waiting: dict[str, int] = {}
        for pool in on_connection(self._pool, dispatch_store.list_queued_pools):
            count = self._publisher.count(
                run_queue(pool), timeout_seconds=self._config.answer_within.total_seconds()
            )
            if count is None:
                return None
            waiting[pool] = count
        return waiting

    def _queue(self, connection: Connection) -> _Queued:
        dispatch_store.lock_dispatch(connection)
        arrived = dispatch_store.take_arrivals(connection, limit=self._config.arrivals)
        is_more = arrived == self._config.arrivals
        rooms = self._measure_rooms(dispatch_store.list_rooms(connection))
        if not rooms:
            return _Queued(has_room=False, is_more=is_more)
        room = sum(rooms.values())
        limit = min(room, self._config.batch_size)
        lanes = dispatch_store.list_lanes(
            connection,
            list(rooms),
            # A few more than needed: some may turn out to be empty.
            limit=min(2 * limit + _SPARE_LANES, self._config.batch_size),
            default_running=self._config.default_running,
        )
        runs = self._take(connection, lanes, decide_shares(lanes, rooms)[:limit])
        has_room = len(runs) < room
        # Whoever makes room, by a claim or an end, wakes the loop.
        is_more = is_more or (has_room and bool(runs)) or any(not lane.tasks for lane in lanes)
        failpoints.reach("run_not_committed")
        return _Queued(runs=runs, has_room=has_room, is_more=is_more)

    def _measure_rooms(self, rooms: Sequence[Room]) -> dict[str, int]:
        """How many runs may be made for each pool that has any room."""
        measured = {
            room.pool: decide_room(room, claimed=self._claims[room.pool].note(room.claims_total)) for room in rooms
        }
        return {pool: count for pool, count in measured.items() if count > 0}

    def _take(self, connection: Connection, lanes: Sequence[Lane], chosen: Sequence[int]) -> list[QueuedRun]:
        """Queue the tasks that the chosen lanes give, in that order, and bring the lanes up to date."""
        shares = list(Counter(chosen).items())
        due = (
            dispatch_store.lock_due_tasks(connection, [(lanes[index], count) for index, count in shares])
            if shares
            else []
        )
        given: dict[int, deque[DueTask]] = {index: deque() for index, _ in shares}
        for task in due:
            given[shares[task.place - 1][0]].append(task)
        in_order = [(given[index].popleft(), lanes[index].pool) for index in chosen if given[index]]
        runs = [_to_run(task, pool) for task, pool in in_order]
        if runs:
            dispatch_store.queue_tasks(
                connection, [task for task, _ in in_order], runs, publish_within=self._config.publish_within
            )
        changed = [lane for index, lane in enumerate(lanes) if index in given or not lane.tasks]
        if changed:
            dispatch_store.move_lanes(connection, changed)
        return runs

    def _publish(self, runs: Sequence[QueuedRun]) -> int:
        """Outside any transaction: the broker may take its time. Returns how many it confirmed."""
        if not runs:
            return 0
        failpoints.reach("run_not_published")
        confirmed = self._publisher.publish(
            [Outgoing(RunMessage(run.run_id, run.task_id), run.request_id, run_queue(run.pool)) for run in runs],
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
        on_connection(self._pool, lambda connection: dispatch_store.leave_to_others(connection, run_ids))

    def _mark_published(self, run_ids: Sequence[UUID]) -> None:
        if not run_ids:
            return
        within = self._config.claim_within
        on_connection(
            self._pool, lambda connection: dispatch_store.mark_published(connection, run_ids, claim_within=within)
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


def decide_sleep(due_in: timedelta | None, *, is_held_back: bool, has_room: bool, tick: timedelta) -> timedelta:
    """Until the next task is due, but not longer than a tick; a tick when it couldn't go then.

    While something that is due is held back, a stream of due times must not keep the loop busy: it rests a little.
    """
    if due_in is None or not has_room:
        return tick
    return min(max(due_in, _REST if is_held_back else timedelta(0)), tick)


def _overdue_seconds(ahead: Ahead) -> float:
    return 0.0 if ahead.overdue is None else ahead.overdue.total_seconds()


def _to_run(task: DueTask, pool: str) -> QueuedRun:
    return QueuedRun(run_id=uuid.uuid4(), task_id=task.task_id, request_id=task.request_id, pool=pool)
