"""What holds beside the crash table: the rules of docs/task-model.md that need more than one process to be hit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import psycopg

from tests.faults import strike
from tests.faults.case import wait_calm
from tests.faults.crash_table import KILL
from tests.faults.verdict import judge, judge_output
from tests.faults.world import COUNTING, EXECUTORS, LOOPS, World
from tests.polling import wait_until

# The shortest silence after which an engine may be given up. A lease has to run out before.
LOST_SECONDS = 10
GIVEN_UP_SECONDS = 70.0
LEFTOVER_SECONDS = 60.0
ADOPTED_SECONDS = 5.0
# A sync's interval, and the longest pause before a failed one is tried again.
SYNC_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Rule:
    """`name` is one of CHECKS."""

    name: str
    repetition: int = 1

    @property
    def id(self) -> str:
        return f"{self.name}-{self.repetition}"

    @property
    def within(self) -> float:
        return CHECKS[self.name].within

    @property
    def longest_seconds(self) -> float:
        return CHECKS[self.name].longest_seconds

    def run(self, world: World) -> float:
        """The seconds that it took; AssertionError when it doesn't hold."""
        return CHECKS[self.name].run(world)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    says: str
    run: Callable[[World], float]
    within: float
    longest_seconds: float


def _start_counting(world: World) -> str:
    task_id = world.create_task(COUNTING)
    wait_until(lambda: world.read_task(task_id)["status"] == "running", what="the task was running")
    return task_id


def _end_counting(world: World, task_id: str) -> None:
    world.tell(task_id)
    world.wait_ended(task_id)
    wait_calm(world)
    judge_output(world.read_output(str(world.list_runs(task_id)[-1]["id"])), COUNTING, was_told=True)


def _is_held(world: World, task_id: str) -> bool:
    return bool(world.list_runs(task_id)[-1]["is_held"])


def _refuse_a_second_live_run(world: World) -> float:
    """S1, whoever writes it: here somebody who doesn't look first."""
    task_id = _start_counting(world)

    try:
        world.query(
            "INSERT INTO scheduler.runs (id, task_id, number, next_publish_at, request_id)"
            " VALUES (gen_random_uuid(), %(id)s, 2, now(), '') RETURNING id",
            id=task_id,
        )
    except psycopg.errors.UniqueViolation:
        pass
    else:
        raise AssertionError("a second live run was let in")

    _end_counting(world, task_id)
    judge(world, task_id, runs=["completed"])
    return 0.0


def _wait_for_a_leftover(world: World) -> float:
    """S2: a run that was given up still runs when its engine is back; the task's next one waits for its name."""
    for name in LOOPS:
        world.parts[name].kill()
        world.parts[name].start(EXECUTOR_LOST_SECONDS=str(LOST_SECONDS))
    executors = [world.parts[name] for name in EXECUTORS]
    task_id = _start_counting(world)

    strike.strike(world, executors, KILL)
    wait_until(
        lambda: world.list_runs(task_id)[0]["status"] == "lost",
        what="the run was given up",
        seconds=GIVEN_UP_SECONDS,
    )
    for part in executors:
        part.start()
    for part in executors:
        part.wait_ready()
    began = time.monotonic()
    wait_until(
        lambda: world.list_runs(task_id)[-1]["status"] == "running",
        what="the next run was running",
        seconds=LEFTOVER_SECONDS * 2,
        every=0.2,
    )
    seconds = time.monotonic() - began

    findings = world.journal.look()
    assert not findings.overlaps, f"two containers at a time: {findings.overlaps}"
    _end_counting(world, task_id)
    judge(world, task_id, runs=["lost", "completed"], starts=2)
    for name in LOOPS:
        world.parts[name].kill()
    return seconds


def _keep_what_nobody_looks_after(world: World) -> float:
    """S4: a lease that ran out proves nothing. All executors are away, longer than a lease lasts."""
    executors = [world.parts[name] for name in EXECUTORS]
    task_id = _start_counting(world)

    strike.strike(world, executors, KILL)
    time.sleep(strike.SECONDS)
    assert [run["status"] for run in world.list_runs(task_id)] == ["running"], "it was closed without proof"
    for part in executors:
        part.start()
    for part in executors:
        part.wait_ready()
    began = time.monotonic()
    wait_until(lambda: _is_held(world, task_id), what="the run was held again", every=0.2)
    seconds = time.monotonic() - began

    assert len(world.list_runs(task_id)) == 1, "it was closed without proof"
    _end_counting(world, task_id)
    judge(world, task_id, runs=["completed"])
    return seconds


def _take_nothing_over_after_a_restart(world: World) -> float:
    """45 s: the lease ran out because nobody could renew it, and its holder is the last to be back."""
    task_id = _start_counting(world)
    (run,) = world.list_runs(task_id)
    holder = str(run["executor_id"])
    (other,) = set(EXECUTORS) - {holder}
    scheduler, (link,) = world.parts["scheduler"], world.list_links_between(holder, "scheduler")

    link.black_hole()
    scheduler.kill()
    wait_until(lambda: not _is_held(world, task_id), what="the lease ran out", seconds=40.0, every=0.5)
    scheduler.start()
    scheduler.wait_ready()
    began = world.now()
    for _ in range(2):
        # The one that had no part in it speaks, and would take over.
        world.wait_heard(other, since=began)
        began = world.now()
    assert world.list_runs(task_id)[0]["epoch"] == 1, "it was taken over within 45 s"
    link.pass_all()
    healed_at = time.monotonic()
    wait_until(lambda: _is_held(world, task_id), what="its holder had renewed the lease", every=0.2)
    seconds = time.monotonic() - healed_at

    _end_counting(world, task_id)
    judge(world, task_id, runs=["completed"])
    assert world.list_runs(task_id)[0]["epoch"] == 1, "it was taken over within 45 s"
    return seconds


CHECKS: Mapping[str, Check] = {
    "one_live_run": Check(
        says="a second live run of a task is refused",
        run=_refuse_a_second_live_run,
        within=1.0,
        longest_seconds=5.0,
    ),
    "leftover": Check(
        says="given up, then back",
        run=_wait_for_a_leftover,
        within=LEFTOVER_SECONDS,
        longest_seconds=GIVEN_UP_SECONDS + LEFTOVER_SECONDS,
    ),
    "all_executors_away": Check(
        says="all executors of an engine dead for 45 s",
        run=_keep_what_nobody_looks_after,
        within=ADOPTED_SECONDS,
        longest_seconds=strike.SECONDS + 10.0,
    ),
    "scheduler_away": Check(
        says="scheduler dead for longer than a lease",
        run=_take_nothing_over_after_a_restart,
        within=SYNC_SECONDS * 2,
        longest_seconds=60.0,
    ),
}
