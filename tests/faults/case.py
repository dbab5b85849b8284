"""One crash from beginning to end: a task, a part that is hit while it is at a failpoint, and what comes of it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import datetime

import requests

from tests.faults import strike
from tests.faults.crash_table import TABLE, TERMINAL, Crash, View
from tests.faults.part import Part
from tests.faults.verdict import describe, judge, judge_output
from tests.faults.world import COUNTING, World, make_task
from tests.polling import wait_until

# How much longer is waited to see by how much a bound was missed.
GRACE_SECONDS = 15.0
LOOK_SECONDS = 0.2
# What a part that was away does wrong, it does soon.
AFTERMATH_SECONDS = 1.0
CREATE_SECONDS = 70.0
ASK_AGAIN_SECONDS = 8.0


@dataclass(frozen=True, slots=True)
class Case:
    """`name` is the crash's in the table."""

    name: str
    fault: str
    repetition: int = 1

    @property
    def crash(self) -> Crash:
        return TABLE[self.name]

    @property
    def id(self) -> str:
        return f"{self.name}-{self.fault}-{self.repetition}"

    @property
    def within(self) -> float:
        return self.crash.within[self.fault]

    @property
    def longest_seconds(self) -> float:
        lasting = strike.SECONDS if strike.lasts(self.fault) else 0.0
        return lasting + self.within if self.crash.alone else max(lasting, self.within)

    def run(self, world: World) -> float:
        """The seconds that it took to recover. AssertionError when anything but those isn't as the table says."""
        return _run(world, self)


def _run(world: World, case: Case) -> float:
    crash, fault = case.crash, case.fault
    with Creation(world, crash) as creation:
        if not crash.cancels:
            world.arm(crash.failpoint)
        creation.begin()
        if crash.cancels:
            _cancel_when_running(world, creation, crash)
        hit = world.wait_reached(crash.failpoint)
        if crash.also is not None:
            crash.also(world)
        seconds = _measure(world, hit, creation, case)
        task_id = creation.wait()
    _end_by_hand(world, task_id, crash)
    wait_calm(world)
    runs = ["lost", crash.status] if fault in crash.lost else [crash.status]
    judge(world, task_id, runs=runs, status=crash.status, reason=crash.reason)
    last_run_id = str(world.list_runs(task_id)[-1]["id"])
    judge_output(world.read_output(last_run_id), crash.script, was_told=not crash.cancels)
    return seconds


class Creation:
    """The task's creation by a client that asks again when it gets no answer."""

    def __init__(self, world: World, crash: Crash) -> None:
        self._world = world
        self._body = make_task(crash.script, name=f"case-{time.monotonic_ns()}", **crash.fields)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._giving_up = threading.Event()
        self._task_id: str | None = None

    def __enter__(self) -> Creation:
        return self

    def __exit__(self, *_: object) -> None:
        self._giving_up.set()
        self._thread.join(ASK_AGAIN_SECONDS * 2)

    def begin(self) -> None:
        self._thread.start()

    @property
    def is_answered(self) -> bool:
        return self._task_id is not None

    def wait(self) -> str:
        """The task's id, when the client has been answered."""
        self._thread.join(CREATE_SECONDS)
        assert self._task_id is not None, "the client was never answered 201"
        return self._task_id

    def find_task(self) -> str | None:
        """As the database knows it, answered or not; the one that was made last when there are several."""
        found = self._world.query(
            "SELECT id FROM scheduler.tasks WHERE name = %(name)s ORDER BY created_at DESC LIMIT 1",
            name=self._body["name"],
        )
        return str(found[0]["id"]) if found else None

    def _run(self) -> None:
        while not self._giving_up.is_set():
            try:
                answer = self._world.request("POST", "/api/tasks/", json=self._body, seconds=ASK_AGAIN_SECONDS)
            except requests.RequestException:
                self._giving_up.wait(0.5)
                continue
            if answer.status_code == 201:
                self._task_id = answer.json()["id"]
                return
            self._giving_up.wait(0.5)


def _cancel_when_running(world: World, creation: Creation, crash: Crash) -> None:
    task_id = creation.wait()
    wait_until(lambda: world.read_task(task_id)["status"] == "running", what="the task was running")
    world.arm(crash.failpoint)
    answer = world.request("POST", f"/api/tasks/{task_id}/cancel")
    assert answer.status_code == 202, answer.text


def _measure(world: World, hit: Part, creation: Creation, case: Case) -> float:
    """Strike, wait until all is well again, and end the fault when its time is over."""
    crash, fault = case.crash, case.fault
    strike.strike(world, [hit], fault)
    struck_at = time.monotonic()
    counted_from, since = struck_at, world.now()
    recovered_at: float | None = None
    if strike.lasts(fault):
        over_at = struck_at + strike.SECONDS
        while recovered_at is None and not crash.alone and time.monotonic() < over_at:
            if _is_recovered(world, creation, crash, since):
                recovered_at = time.monotonic()
            time.sleep(LOOK_SECONDS)
        time.sleep(max(0.0, over_at - time.monotonic()))
        strike.end(world, [hit], fault)
    elif crash.alone:
        hit.wait_ready()
    if crash.alone:
        counted_from, since = time.monotonic(), world.now()
    give_up_at = counted_from + case.within + GRACE_SECONDS
    while recovered_at is None:
        if _is_recovered(world, creation, crash, since):
            recovered_at = time.monotonic()
        elif time.monotonic() > give_up_at:
            task_id = creation.find_task()
            said = "there is no task" if task_id is None else describe(world, task_id)
            raise AssertionError(f"not recovered within {case.within:g} s: {said}")
        time.sleep(LOOK_SECONDS)
    return recovered_at - counted_from


def _is_recovered(world: World, creation: Creation, crash: Crash, since: datetime) -> bool:
    task_id = creation.find_task()
    if task_id is None:
        return False
    task = world.read_task(task_id)
    view = View(
        task,
        world.list_runs(task_id),
        # The engine is asked only when nothing else is left to wait for.
        has_container=not task["finished_at"] or bool(world.list_containers(task_id)),
        is_answered=creation.is_answered,
        since=since,
    )
    return crash.recovered(view)


def _end_by_hand(world: World, task_id: str, crash: Crash) -> None:
    if crash.script == COUNTING and not crash.cancels and world.read_task(task_id)["status"] not in TERMINAL:
        world.tell(task_id)
    world.wait_ended(task_id)


def wait_calm(world: World) -> None:
    """Everybody who was hit and is there has spoken again, and has had the time to do something wrong."""
    for part in world.parts.values():
        if part.is_running:
            part.wait_ready()
    time.sleep(AFTERMATH_SECONDS)
    wait_until(lambda: world.count_open_tasks() == 0, what="no task was open any more")
