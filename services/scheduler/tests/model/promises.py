"""What must hold after every step, by the rows of the database and the engines' containers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

from services.scheduler.states import (
    HELD_RUN,
    LIVE_RUN,
    RUN_MOVES,
    TASK_MOVES,
    TERMINAL_RUN,
    TERMINAL_TASK,
    RunStatus,
    TaskStatus,
)
from services.scheduler.tests.model.engine import Container, State
from services.scheduler.tests.model.world import World

SETTLE = timedelta(seconds=45)
EXECUTOR_SILENCE = timedelta(seconds=300)

_QUERIES = (
    "SELECT * FROM scheduler.tasks",
    "SELECT * FROM scheduler.runs ORDER BY task_id, number",
    "SELECT * FROM scheduler.leases",
)
_KEYS = ("id", "id", "run_id")
_MISCOUNTED = """
SELECT user_id, status, sum(count)
  FROM (SELECT user_id, status, count FROM scheduler.task_counts
        UNION ALL SELECT user_id, status, change FROM scheduler.task_count_changes
        UNION ALL SELECT user_id, status, -1 FROM scheduler.tasks WHERE deleted_at IS NULL) AS counted
 GROUP BY user_id, status
HAVING sum(count) <> 0
"""

Row = dict[str, Any]
Rows = dict[UUID, Row]


class Promises:
    """Compares what is there with what was there at the last look."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._tasks: Rows = {}
        self._runs: Rows = {}
        # Promise 2's exception: runs that were closed with their silent engine.
        self._given_up: set[UUID] = set()

    def check(self) -> Rows:
        """Raises AssertionError when one is broken. Returns the tasks."""
        with self._world.pool.connection() as connection:
            with connection.pipeline():
                found = [connection.execute(query) for query in _QUERIES]
                miscounted = connection.execute(_MISCOUNTED)
            assert miscounted.fetchall() == [], "the counts differ from the tasks"
            tasks, runs, leases = ({row[key]: row for row in rows} for rows, key in zip(found, _KEYS, strict=True))
        self._check_nothing_vanished(tasks)
        self._check_moves(tasks, self._tasks, TASK_MOVES, TERMINAL_TASK)
        self._check_moves(runs, self._runs, RUN_MOVES, TERMINAL_RUN)
        _check_tasks(tasks, runs)
        _check_retries(tasks, runs)
        _check_leases(runs, leases)
        self._check_epochs(runs)
        self._check_closed(runs)
        self._check_containers(runs)
        self._tasks, self._runs = tasks, runs
        return tasks

    def _check_nothing_vanished(self, tasks: Rows) -> None:
        missing = set(self._world.created) - set(tasks) - self._world.deleted
        assert not missing, "promise 1: a task is gone that nobody deleted"

    def _check_moves(self, rows: Rows, before: Rows, moves: Mapping[Any, Any], terminal: frozenset[Any]) -> None:
        for key, old in before.items():
            if key not in rows:
                continue
            new = rows[key]
            if old["status"] in terminal:
                assert new == old, "promise 4: a terminal row changed"
            reachable = _list_reachable(old["status"], moves)
            assert new["status"] in reachable, f"from {old['status']} to {new['status']}"
        for row in rows.values():
            assert (row["finished_at"] is not None) == (row["status"] in terminal)

    def _check_epochs(self, runs: Rows) -> None:
        for key, new in runs.items():
            old = self._runs.get(key)
            if old is None:
                continue
            assert new["epoch"] >= old["epoch"], "an epoch fell"
            if old["executor_id"] is not None and old["boot_id"] != new["boot_id"]:
                assert new["epoch"] > old["epoch"], "another holder has the same epoch"
            if old["executor_id"] not in (None, new["executor_id"]):
                away = self._world.clock.now - self._world.back_at
                assert away >= SETTLE, "taken over within 45 s after an outage"

    def _check_closed(self, runs: Rows) -> None:
        """S4: at its closing nothing of a run is at work, unless its engine is given up."""
        # Of a deleted task: one sweep gives its run up and then deletes both.
        vanished = [run for key, run in self._runs.items() if key not in runs and run["status"] in HELD_RUN]
        self._given_up |= {run["id"] for run in vanished if self._is_engine_given_up(run)}
        for key, run in runs.items():
            old = self._runs.get(key)
            if run["status"] not in TERMINAL_RUN or (old is not None and old["status"] in TERMINAL_RUN):
                continue
            if run["status"] == RunStatus.LOST and self._is_engine_given_up(run):
                self._given_up.add(key)
            containers = self._list_containers_of(key)
            if run["status"] in (RunStatus.COMPLETED, RunStatus.FAILED):
                codes = [each.exit_code for each in containers if each.state == State.EXITED]
                assert run["exit_code"] in codes, "closed with an exit that nobody saw"

    def _is_engine_given_up(self, run: Row) -> bool:
        now = self._world.clock.now
        heard_at = self._world.engines[run["engine_id"]].heard_at
        return now - heard_at >= EXECUTOR_SILENCE and now - self._world.back_at >= EXECUTOR_SILENCE

    def _check_containers(self, runs: Rows) -> None:
        running: dict[UUID, list[Container]] = defaultdict(list)
        for engine in self._world.engines.values():
            for container in engine.running:
                if container.run_id not in self._given_up:
                    running[container.name].append(container)
                    # Of a deleted task nothing is known any more, but that its runs had closed.
                    status = runs[container.run_id]["status"] if container.run_id in runs else RunStatus.LOST
                    assert status in HELD_RUN, f"S4: its run is {status}, and it runs"
            assert all(each.starts <= 1 for each in engine.containers), "S3: a container was started twice"
        assert all(len(each) == 1 for each in running.values()), "promise 2: a task runs twice at a time"
        started = Counter(
            each.run_id for engine in self._world.engines.values() for each in engine.containers if each.starts
        )
        assert all(count == 1 for count in started.values()), "a run was started twice"

    def _list_containers_of(self, run_id: UUID) -> list[Container]:
        engines = self._world.engines.values()
        return [each for engine in engines for each in engine.containers if each.run_id == run_id]


def _check_tasks(tasks: Rows, runs: Rows) -> None:
    by_task: dict[UUID, list[Row]] = defaultdict(list)
    for run in runs.values():
        by_task[run["task_id"]].append(run)
    for key, task in tasks.items():
        own = by_task[key]
        live = [run for run in own if run["status"] in LIVE_RUN]
        lost = [run for run in own if run["status"] == RunStatus.LOST]
        assert len(live) <= 1, "S1: two live runs of one task"
        assert bool(live) == (task["status"] in (TaskStatus.QUEUED, TaskStatus.RUNNING)), "task and run disagree"
        assert (task["reason"] is not None) == (task["status"] == TaskStatus.FAILED)
        assert task["lost_count"] == len(lost), "the lost runs are counted wrongly"
        assert task["attempts"] == len(own) - len(lost), "the attempts are counted wrongly"
        assert [run["number"] for run in own] == list(range(1, len(own) + 1)), "the runs are numbered wrongly"
        if task["status"] in (TaskStatus.COMPLETED, TaskStatus.RUNNING):
            held = {RunStatus.RUNNING, RunStatus.STOPPING}
            allowed = held if task["status"] == TaskStatus.RUNNING else {RunStatus.COMPLETED}
            assert own[-1]["status"] in allowed, "task and last run disagree"


def _check_retries(tasks: Rows, runs: Rows) -> None:
    """An attempt follows a failure that its task wants tried again, after its backoff, and only so many do."""
    by_task: dict[UUID, list[Row]] = defaultdict(list)
    for run in runs.values():
        if run["status"] != RunStatus.LOST:
            by_task[run["task_id"]].append(run)
    for key, own in by_task.items():
        task = tasks[key]
        is_open = task["status"] == TaskStatus.PENDING
        assert len(own) + is_open <= task["max_attempts"], "retry: more attempts than the task asks for"
        ended = own if is_open else own[:-1]
        for number, run in enumerate(ended, start=1):
            assert run["status"] == RunStatus.FAILED, f"retry: another attempt after one that is {run['status']}"
            codes = task["retry_exit_codes"]
            assert codes is None or run["exit_code"] in codes, "retry: another attempt after an unlisted exit code"
            later = own[number]["due_at"] if number < len(own) else task["due_at"]
            assert later - run["closed_at"] >= _least_backoff(task, number), "retry: the backoff was cut short"
        if task["status"] == TaskStatus.FAILED and own[-1]["status"] == RunStatus.FAILED:
            codes = task["retry_exit_codes"]
            is_mendable = codes is None or own[-1]["exit_code"] in codes
            assert not is_mendable or len(own) == task["max_attempts"], "retry: given up with attempts left"


def _least_backoff(task: Row, failures: int) -> timedelta:
    most = min(task["backoff_seconds"] * 2 ** (failures - 1), task["max_backoff_seconds"])
    return timedelta(seconds=most * 0.75)


def _check_leases(runs: Rows, leases: Rows) -> None:
    held = {key: run for key, run in runs.items() if run["status"] in HELD_RUN}
    assert set(leases) == set(held), "leases and held runs differ"
    for key, run in held.items():
        for column in ("epoch", "executor_id", "boot_id", "engine_id"):
            assert leases[key][column] == run[column], f"lease and run differ in {column}"


def _list_reachable(status: str, moves: Mapping[Any, Any]) -> set[str]:
    """Also over several moves: one step may make more than one."""
    reached, new = {status}, {status}
    while new:
        new = {target for source in new for target in moves[source]} - reached
        reached |= new
    return reached
