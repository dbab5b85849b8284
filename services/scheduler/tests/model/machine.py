"""The rules: what may happen to the system, in any order."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from uuid import UUID

import psycopg
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.scheduler.states import TERMINAL_TASK
from services.scheduler.tests.model.broker import Fate
from services.scheduler.tests.model.engine import Container
from services.scheduler.tests.model.executor import CallFate, Process
from services.scheduler.tests.model.promises import Promises
from services.scheduler.tests.model.world import EXECUTORS, SCHEDULERS, USERS, World

MOST_TASKS = 4
# An unclaimed message is sent again after a minute, and the time doubles up to 15 min.
HURRIED_ROUNDS = 15
HEALING_ROUNDS = 40

INDEXES = st.integers(0, 3)
SCHEDULER_INDEXES = st.integers(0, SCHEDULERS - 1)
FATES = st.sampled_from(Fate)
CALL_FATES = st.sampled_from(CallFate)
STEPS = st.integers(1, 6)
FEW_STEPS = st.integers(0, 3)
EXIT_CODES = st.sampled_from([0, 1])
# After which of them a task is tried again.
EXIT_CODE_LISTS = st.sampled_from([None, None, [1], [7]])
# Around what matters: a sync, a lease, the 45 s, the broker's minute, the 300 s of silence.
PAUSES = st.sampled_from([timedelta(seconds=seconds) for seconds in (1, 6, 16, 31, 46, 61, 310)])

_SECOND_RUN = """
INSERT INTO scheduler.runs (id, task_id, number, request_id, next_publish_at)
SELECT gen_random_uuid(), task_id, max(number) + 1, 'model', now()
  FROM scheduler.runs
 WHERE task_id = %(task_id)s
 GROUP BY task_id
HAVING bool_or(status IN ('queued', 'claimed', 'running', 'stopping'))
"""
_CHANGE_TASK = "UPDATE scheduler.tasks SET exit_code = 99 WHERE id = %(task_id)s AND finished_at IS NOT NULL"
_CHANGE_RUNS = "UPDATE scheduler.runs SET exit_code = 99 WHERE task_id = %(task_id)s AND finished_at IS NOT NULL"


class SystemMachine(RuleBasedStateMachine):
    """What a test gives it is a world; Hypothesis does the rest."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.promises = Promises(world)
        self._is_broken = False

    # What goes as it should. The shortest way to a state that something can happen to.

    @rule(
        user=st.sampled_from(USERS),
        priority=st.integers(4, 6),
        delay=st.sampled_from([0, 0, 0, 20]),
        attempts=st.integers(1, 3),
        codes=EXIT_CODE_LISTS,
    )
    @precondition(lambda self: len(self.world.created) < MOST_TASKS)
    def create(self, user: UUID, priority: int, delay: int, attempts: int, codes: list[int] | None) -> None:
        self.world.create(user, priority=priority, delay=timedelta(seconds=delay), attempts=attempts, codes=codes)

    @rule(process=INDEXES, steps=st.sampled_from([0, 1, 2, 3, 4, 6, 8]), fate=CALL_FATES)
    def bring_up(self, process: int, steps: int, fate: CallFate) -> None:
        """A task goes as far as that many steps, with little in the way."""
        if not self.world.created:
            self.world.create(USERS[0], priority=5, delay=timedelta(0))
        self.world.dispatch(0, Fate.TAKEN)
        if (chosen := self._pick(process)) is not None and not chosen.frozen:
            self.world.deliver(chosen, 0)
            self.world.sync(chosen)
            self.world.work(chosen, steps, fate)

    @rule(process=INDEXES, exit_code=EXIT_CODES)
    def bring_to_an_end(self, process: int, exit_code: int) -> None:
        """What runs at an executor ends, and is reported."""
        if (chosen := self._pick_busy(process)) is not None and not chosen.frozen:
            for run in chosen.runs:
                if run.container is not None:
                    chosen.engine.end(run.container, exit_code)
            self.world.work(chosen, 1)
            self.world.sync(chosen)

    @rule(process=INDEXES)
    def sync(self, process: int) -> None:
        if (chosen := self._pick_busy(process)) is not None and not chosen.frozen:
            self.world.sync(chosen)

    @rule(process=INDEXES, steps=STEPS, fate=CALL_FATES)
    def work(self, process: int, steps: int, fate: CallFate) -> None:
        if (chosen := self._pick_busy(process)) is not None and not chosen.frozen:
            self.world.work(chosen, steps, fate)

    @rule(container=INDEXES, exit_code=EXIT_CODES)
    def end_container(self, container: int, exit_code: int) -> None:
        running = self._list_running()
        if running:
            chosen = running[container % len(running)]
            chosen.engine.end(chosen, exit_code)

    @rule(scheduler=SCHEDULER_INDEXES, fate=FATES, meanwhile=st.booleans(), process=INDEXES)
    def dispatch(self, scheduler: int, fate: Fate, meanwhile: bool, process: int) -> None:
        """Meanwhile: an executor claims before the dispatcher has heard of the confirm."""

        def claim() -> None:
            if (chosen := self._pick(process)) is not None and not chosen.frozen:
                self.world.deliver(chosen, 0)
                self.world.sync(chosen)

        self.world.dispatch(scheduler, fate, meanwhile=claim if meanwhile else None)

    @rule(scheduler=SCHEDULER_INDEXES, fate=FATES)
    def sweep(self, scheduler: int, fate: Fate) -> None:
        self.world.sweep(scheduler, fate)

    @rule(process=INDEXES, message=INDEXES, twice=st.booleans())
    def deliver(self, process: int, message: int, twice: bool) -> None:
        if (chosen := self._pick(process)) is not None and not chosen.frozen:
            self.world.deliver(chosen, message, keep=twice)

    @rule(by=PAUSES, silent=st.sets(st.sampled_from(sorted(EXECUTORS))), swept=st.booleans(), steps=FEW_STEPS)
    def pass_time(self, by: timedelta, silent: set[str], swept: bool, steps: int) -> None:
        in_touch = [each for each in self._list_awake() if each.executor_id not in silent]
        self.world.pass_time(by, in_touch)
        if swept:
            self.world.sweep(0, Fate.TAKEN)
        for process in in_touch:
            self.world.work(process, steps)

    # What users do.

    @rule(task=INDEXES)
    @precondition(lambda self: self.world.created)
    def cancel(self, task: int) -> None:
        self.world.cancel(self._pick_task(task))

    @rule(task=INDEXES)
    @precondition(lambda self: self.world.created)
    def delete(self, task: int) -> None:
        self.world.delete(self._pick_task(task))

    @rule()
    def delete_user(self) -> None:
        self.world.delete_user(USERS[1])

    # What goes wrong.

    @rule(process=INDEXES, fate=st.sampled_from(["request lost", "request late", "answer lost", "answer late"]))
    def sync_badly(self, process: int, fate: str) -> None:
        chosen = self._pick_busy(process)
        if chosen is None or chosen.frozen or chosen.waiting is not None:
            return
        request = chosen.send(self.world.clock.now)
        if fate == "request late":
            self.world.wire.append(request)
        if fate.startswith("answer"):
            self.world.arrive(request)
        if not fate.endswith("late"):
            chosen.give_up_waiting()

    @rule(process=INDEXES)
    def sync_twice(self, process: int) -> None:
        """Something on the way repeats the request."""
        chosen = self._pick(process)
        if chosen is not None and not chosen.frozen and chosen.waiting is None:
            request = chosen.send(self.world.clock.now)
            self.world.arrive(request)
            self.world.arrive(request)
            self.world.hear(chosen)

    @rule(process=INDEXES)
    def hear_late_answer(self, process: int) -> None:
        if (chosen := self._pick(process)) is not None and not chosen.frozen:
            self.world.hear(chosen)

    @rule()
    def catch_up(self) -> None:
        self.world.catch_up()

    @rule(process=INDEXES, by=st.sampled_from([None, 6, 31, 46]), steps=FEW_STEPS)
    def freeze(self, process: int, by: int | None, steps: int) -> None:
        """It is stopped; the others go on, for that long."""
        if (chosen := self._pick_busy(process)) is None:
            return
        chosen.frozen = True
        if by is not None:
            self.world.pass_time(timedelta(seconds=by), self._list_awake())
            for other in self._list_awake():
                self.world.work(other, steps)
                self.world.sync(other)

    @rule(process=INDEXES, steps=FEW_STEPS)
    def thaw(self, process: int, steps: int) -> None:
        """It comes back, and does first what it was about to do."""
        if (chosen := self._pick(process)) is not None and chosen.frozen:
            chosen.frozen = False
            self.world.work(chosen, steps)

    @rule(process=INDEXES, call_under_way=st.booleans())
    def crash(self, process: int, call_under_way: bool) -> None:
        if (chosen := self._pick_busy(process)) is not None:
            self.world.crash(chosen, call_under_way=call_under_way)

    @rule(process=INDEXES, call_under_way=st.booleans(), steps=FEW_STEPS)
    def restart(self, process: int, call_under_way: bool, steps: int) -> None:
        """It crashes and is there again at once."""
        if (chosen := self._pick_busy(process)) is not None:
            self.world.crash(chosen, call_under_way=call_under_way)
            self.start_executor(chosen.executor_id, steps)

    @rule(executor=st.sampled_from(sorted(EXECUTORS)), steps=FEW_STEPS)
    def start_executor(self, executor: str, steps: int) -> None:
        """Also beside a frozen process of the same id."""
        if all(each.frozen for each in self.world.processes if each.executor_id == executor):
            self.world.start_executor(executor)
            started = self.world.processes[-1]
            self.world.sync(started)
            self.world.work(started, steps)
            self.world.sync(started)

    @rule(seconds=st.sampled_from([1, 31, 61, 310]))
    def restart_database(self, seconds: int) -> None:
        self.world.outage(timedelta(seconds=seconds), of_database=True)

    @rule(seconds=st.sampled_from([31, 61, 310]))
    def cut_database(self, seconds: int) -> None:
        self.world.outage(timedelta(seconds=seconds), of_database=False)

    @rule()
    def wipe_broker(self) -> None:
        self.world.broker.queue.clear()

    @rule(task=INDEXES)
    @precondition(lambda self: self.world.created)
    def write_wrongly(self, task: int) -> None:
        """A version of the scheduler that forgot its guards is refused by the database itself."""
        with self.world.pool.connection() as connection:
            for statement in (_SECOND_RUN, _CHANGE_TASK, _CHANGE_RUNS):
                with suppress(psycopg.IntegrityError):
                    connection.execute(statement, {"task_id": self._pick_task(task)})

    # What must hold.

    @invariant()
    def promises_hold(self) -> None:
        self._is_broken = True
        self.promises.check()
        self._is_broken = False

    def teardown(self) -> None:
        """Promise 1: once all parts are back, every task comes to its end."""
        if self._is_broken:
            return
        self._bring_all_back()
        for number in range(HEALING_ROUNDS):
            self._heal(timedelta(seconds=6 if number < HURRIED_ROUNDS else 61))
            if self._has_ended():
                return
        open_tasks = [task["status"] for task in self.promises.check().values()]
        raise AssertionError(f"promise 1: tasks never end: {open_tasks}")

    def _bring_all_back(self) -> None:
        for process in self.world.processes:
            process.frozen = False
        self.world.catch_up()
        last = {process.executor_id: process for process in self.world.processes}
        for executor_id in EXECUTORS:
            if executor_id not in last or last[executor_id].replaced:
                self.world.start_executor(executor_id)

    def _heal(self, by: timedelta) -> None:
        self.world.pass_time(by, self._list_awake())
        self.world.sweep(0, Fate.TAKEN)
        self.world.dispatch(0, Fate.TAKEN)
        for process in self.world.processes:
            for _ in range(process.free_slots):
                self.world.deliver(process, 0)
            self.world.sync(process)
            self.world.work(process, 6)
        for container in self._list_running():
            container.engine.end(container, 0)
        for process in self.world.processes:
            self.world.work(process, 1)
            self.world.sync(process)
            self.world.work(process, 1)
        self.promises.check()

    def _has_ended(self) -> bool:
        tasks = self.promises.check().values()
        return all(task["status"] in TERMINAL_TASK for task in tasks) and not self._list_running()

    # Helpers.

    def _pick(self, index: int) -> Process | None:
        processes = self.world.processes
        return processes[index % len(processes)] if processes else None

    def _pick_busy(self, index: int) -> Process | None:
        """One with runs in hand, as long as there is any: what happens to the others matters little."""
        busy = [process for process in self.world.processes if process.runs]
        return busy[index % len(busy)] if busy else self._pick(index)

    def _pick_task(self, index: int) -> UUID:
        return self.world.created[index % len(self.world.created)]

    def _list_awake(self) -> list[Process]:
        return [each for each in self.world.processes if not each.frozen]

    def _list_running(self) -> list[Container]:
        return [each for engine in self.world.engines.values() for each in engine.running]
