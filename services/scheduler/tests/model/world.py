"""The real scheduler, with everything around it modelled. What happens when is up to the caller."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from libs.common.clock import utc_now
from libs.common.errors import Conflict, NotFound
from libs.common.postgres import Pool
from libs.common.tokens import Identity
from services.scheduler import run_store
from services.scheduler.dispatch import DispatchConfig, Dispatcher
from services.scheduler.idempotency import Answer, Once
from services.scheduler.line import Line
from services.scheduler.quota_store import Quota
from services.scheduler.quotas import Quotas
from services.scheduler.sweep import SweepConfig, Sweeper
from services.scheduler.sync import ExecutorSync, SyncConfig
from services.scheduler.tasks import OperatorLimits, Tasks
from services.scheduler.tests.model.broker import Broker, Fate, PublisherDied
from services.scheduler.tests.model.clock import LONG, Clock
from services.scheduler.tests.model.engine import Engine, NameTaken
from services.scheduler.tests.model.executor import CALLS, CallFate, Process, Request
from services.scheduler.users_client import Deletion

# Two executors share an engine: one can take over from the other. The third has an engine of its own.
EXECUTORS = {"a1": "A", "a2": "A", "b1": "B"}
SCHEDULERS = 2
USERS = (UUID(int=1), UUID(int=2))
_NEVER = datetime(9999, 1, 1, tzinfo=UTC)

_SYNCED_UNTIL_NOW = """
WITH renewed AS (
    UPDATE scheduler.leases l
       SET expires_at = now() + interval '30 seconds'
      FROM unnest(%(runs)s::uuid[], %(epochs)s::int[], %(holders)s::text[]) AS held(run_id, epoch, boot_id)
     WHERE l.run_id = held.run_id AND l.epoch = held.epoch AND l.boot_id = held.boot_id)
UPDATE scheduler.executors SET last_seen_at = now() WHERE boot_id = ANY (%(boots)s) RETURNING boot_id
"""
_EMPTY = "DELETE FROM scheduler.tasks; DELETE FROM scheduler.executors; DELETE FROM scheduler.parts"
_TASK: dict[str, Any] = {
    "user_id": None,
    "image": "busybox",
    "command": None,
    "args": [],
    "entrypoint": None,
    "environment": {},
    "name": None,
    "labels": {},
    "timeout_seconds": 60,
    "stop_grace_seconds": 5,
    "on_executor_lost": "retry",
    "queue_ttl_seconds": None,
    "concurrency": None,
    "pool": "default",
    "resources": {"pids": 10},
    "network": "none",
}

_RETRY = {"backoff_seconds": 5, "max_backoff_seconds": 8}


class _Users:
    """Those who were deleted, however long ago."""

    def __init__(self) -> None:
        self.deleted: set[UUID] = set()

    def exists(self, user_id: UUID) -> bool:
        return user_id not in self.deleted

    def list_deletions(self, since: Any) -> list[Deletion]:
        return [Deletion(user_id, utc_now()) for user_id in self.deleted]


class World:
    """`rules_off` names the rules of the models that don't hold (test_model.py, MUTATIONS)."""

    def __init__(self, pool: Pool, *, sync_config: SyncConfig, rules_off: Collection[str] = ()) -> None:
        self.pool = pool
        with pool.connection() as connection:
            connection.execute(_EMPTY)
        self.clock = Clock(pool)
        self.broker = Broker()
        self.wire: list[Request] = []
        self.created: list[UUID] = []
        self.deleted: set[UUID] = set()
        # When the database or the scheduler's HTTP side was last away.
        self.back_at = self.clock.now - LONG
        self._users = _Users()
        self._rules_off = rules_off
        self._boots = itertools.count(1)
        self._sync_config = sync_config
        self.engines = {
            name: Engine(name, heard_at=self.clock.now, names_are_exclusive="S2" not in rules_off)
            for name in sorted(set(EXECUTORS.values()))
        }
        self.processes: list[Process] = []
        self._build_scheduler()
        self._note_http(since=self.back_at)
        for executor_id in EXECUTORS:
            self.start_executor(executor_id)
            self.sync(self.processes[-1])

    def _build_scheduler(self) -> None:
        def wake() -> None:
            """The loops are called when the caller likes it."""

        def hint(_task_ids: Collection[UUID]) -> None:
            """Nobody follows."""

        users: Any = self._users
        self._syncs = ExecutorSync(pool=self.pool, config=self._sync_config, wake_dispatch=wake, hint_output=hint)
        quotas = Quotas(pool=self.pool, users=users, defaults=Quota())
        self._tasks = Tasks(
            pool=self.pool,
            users=users,
            limits=OperatorLimits(4.0, 4096, ()),
            quotas=quotas,
            line=Line(pool=self.pool, default_running=None),
            wake_dispatch=wake,
            require_room=wake,
            hint_stop=lambda _: None,
        )
        self.dispatchers = [
            Dispatcher(
                pool=self.pool,
                publisher=self.broker,
                config=DispatchConfig(),
                monotonic=self.clock.monotonic,
            )
            for _ in range(SCHEDULERS)
        ]
        config = SweepConfig(slow_tick=timedelta(0))
        self.sweepers = [
            Sweeper(
                pool=self.pool,
                dispatcher=dispatcher,
                users=users,
                config=config,
                wake_dispatch=wake,
                monotonic=self.clock.monotonic,
            )
            for dispatcher in self.dispatchers
        ]

    # Users.

    def create(
        self, user_id: UUID, *, priority: int, delay: timedelta, attempts: int = 1, codes: list[int] | None = None
    ) -> None:
        scheduled_at = self.clock.now + delay if delay else None
        retry = _RETRY | {"max_attempts": attempts, "on_exit_codes": codes}
        fields = _TASK | {"priority": priority, "scheduled_at": scheduled_at, "retry": retry}
        self._tasks.create(_identify(user_id), fields, request_id="model", once=Once(None, self._note_created))

    def _note_created(self, views: list[dict[str, Any]]) -> Answer:
        self.created += [view["id"] for view in views]
        return Answer(201, b"")

    def cancel(self, task_id: UUID) -> None:
        with suppress(NotFound):
            self._tasks.cancel(_identify(USERS[0]), task_id)

    def delete(self, task_id: UUID) -> None:
        with suppress(NotFound):
            self._tasks.delete(_identify(USERS[0]), task_id)
        self.deleted.add(task_id)

    def delete_user(self, user_id: UUID) -> None:
        self._users.deleted.add(user_id)

    # The scheduler's loops.

    def dispatch(self, index: int, fate: Fate, *, meanwhile: Callable[[], object] | None = None) -> None:
        self._publish(self.dispatchers[index].run_once, fate, meanwhile)

    def sweep(self, index: int, fate: Fate) -> None:
        self._publish(self.sweepers[index].run_once, fate, None)

    def _publish(self, loop: Callable[[], object], fate: Fate, meanwhile: Callable[[], object] | None) -> None:
        self.broker.fate = fate
        self.broker.meanwhile = meanwhile or (lambda: None)
        with suppress(PublisherDied):
            loop()
        self.broker.meanwhile = lambda: None

    # Executors.

    def start_executor(self, executor_id: str) -> None:
        """A new boot. A former one that is still there, frozen, doesn't know of it."""
        self.processes.append(
            Process(
                executor_id,
                f"{executor_id}-{next(self._boots)}",
                self.engines[EXECUTORS[executor_id]],
                adopter_starts="S3" in self._rules_off,
            )
        )

    def crash(self, process: Process, *, call_under_way: bool) -> None:
        """The broker delivers again what wasn't acknowledged."""
        if call_under_way:
            process.let_call_happen_late()
        self.broker.queue += process.claims
        self.processes.remove(process)

    def deliver(self, process: Process, index: int, *, keep: bool = False) -> None:
        if not self.broker.queue or process.free_slots <= 0:
            return
        index %= len(self.broker.queue)
        process.take_message(self.broker.queue[index] if keep else self.broker.queue.pop(index))

    def work(self, process: Process, steps: int, fate: CallFate = CallFate.DONE) -> None:
        """So many steps of each of its runs; `fate` is that of the first call of the engine in each."""
        for run in list(process.runs):
            next_fate = fate
            for _ in range(steps):
                if run in process.runs:
                    is_call = run.phase in CALLS
                    process.step(run, self.clock.now, next_fate)
                    next_fate = CallFate.DONE if is_call else next_fate

    def sync(self, process: Process) -> None:
        """A sync that goes well."""
        if process.waiting is None:
            self.arrive(process.send(self.clock.now))
        self.hear(process)

    def arrive(self, request: Request) -> None:
        """The request reaches the scheduler; its answer waits for the process."""
        process = request.process
        try:
            answer: dict[str, Any] | None = self._syncs.sync(request.body)
        except Conflict:
            answer = None
        else:
            process.engine.heard_at = self.clock.now
        if process.waiting is not request:
            return
        if answer is None:
            process.hear_that_it_was_replaced()
        else:
            process.answer = answer

    def hear(self, process: Process) -> None:
        """Its answer comes, or it gives up waiting for it."""
        if process.waiting is not None and process.answer is not None:
            process.hear(process.waiting, process.answer)
        process.give_up_waiting()

    def catch_up(self) -> None:
        """What is late comes now: requests on their way, and the engines' calls."""
        late, self.wire = self.wire, []
        for request in late:
            self.arrive(request)
        for engine in self.engines.values():
            calls, engine.late = engine.late, []
            for call in calls:
                with suppress(NameTaken):
                    call()

    # Time.

    def pass_time(self, by: timedelta, in_touch: Collection[Process]) -> None:
        """Those in touch keep their leases and hear, at the end, what the scheduler has to say."""
        self.beat()
        self.clock.advance(by)
        held = [(run, process) for process in in_touch for run in process.held]
        with self.pool.connection() as connection:
            connection.execute("UPDATE scheduler.parts SET seen_at = now()")
            heard = connection.execute(
                _SYNCED_UNTIL_NOW,
                {
                    "boots": [process.boot_id for process in in_touch],
                    "runs": [run.run_id for run, _ in held],
                    "epochs": [run.epoch for run, _ in held],
                    "holders": [process.boot_id for _, process in held],
                },
            ).fetchall()
        boots = {row["boot_id"] for row in heard}
        for process in in_touch:
            if process.boot_id in boots:
                process.engine.heard_at = self.clock.now
        for process in in_touch:
            self.hear(process)
            self.sync(process)

    def outage(self, by: timedelta, *, of_database: bool) -> None:
        """The database restarts, or just can't be reached from the scheduler, for that long."""
        self.clock.advance(by)
        self.back_at = self.clock.now
        if of_database:
            self.clock.restart_database()

    def beat(self) -> None:
        with self.pool.connection() as connection:
            run_store.beat(connection, "http")

    def _note_http(self, *, since: datetime) -> None:
        self.beat()
        with self.pool.connection() as connection:
            connection.execute("UPDATE scheduler.parts SET since = %s", (since,))


def _identify(user_id: UUID) -> Identity:
    """Everybody is an admin: who may do what is tested elsewhere."""
    return Identity(
        user_id=user_id,
        roles=frozenset({"admin"}),
        session_id=user_id,
        version=1,
        token_id="model",
        expires_at=_NEVER,
    )
