"""Each row of the crash table, with the process that is there killed, frozen or cut off: `make failpoints`.

Kills are part of `make faults`. All cases run at once, in several worlds; a test waits for its own.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.case import Case
from tests.faults.crash_table import KILL, RESTART, TABLE
from tests.faults.matrix import MakeWorld, Matrix, read_repeat, read_world_count
from tests.faults.rules import CHECKS, Rule
from tests.faults.world import Ground, World
from tests.servers import MakeDatabase, MakeVhosts

CASES = [
    Case(name, fault, repetition)
    for repetition in range(1, read_repeat() + 1)
    for name, crash in TABLE.items()
    for fault in crash.within
]

RULES = [Rule(name, repetition) for repetition in range(1, read_repeat() + 1) for name in CHECKS]


def is_quick(case: Case) -> bool:
    """A kill, once each, of a part that nobody starts again unless nobody else can do its work."""
    return case.repetition == 1 and case.fault == (KILL if KILL in case.crash.within else RESTART)


def mark(case: Case) -> pytest.MarkDecorator | tuple[pytest.MarkDecorator, ...]:
    return (pytest.mark.failpoints, pytest.mark.faults) if is_quick(case) else pytest.mark.failpoints


@pytest.fixture(scope="session")
def make_world(ground: Ground, make_shared_database: MakeDatabase, make_vhosts: MakeVhosts) -> MakeWorld:
    """For any thread. Those that are surely wanted have their virtual hosts made at once."""
    lock = threading.Lock()
    urls = make_vhosts([f"world-{number}" for number in range(read_world_count())])

    def make() -> World:
        with lock:
            broker_url = urls.pop() if urls else make_vhosts([f"world-{uuid.uuid4().hex}"])[0]
            database = make_shared_database("scheduler")
        return World(ground, database=database, broker_url=broker_url)

    return make


@pytest.fixture(scope="session")
def matrix(ground: Ground, make_world: MakeWorld, request: pytest.FixtureRequest) -> Iterator[Matrix]:
    """Of the trials that were selected."""
    selected = [getattr(item, "callspec", None) for item in request.session.items]
    trials = [
        trial
        for each in selected
        if each is not None and isinstance(trial := each.params.get("trial"), Case | Rule)
    ]
    seen = ground.folder / "seen.txt"
    print(f"\nwhat is seen, as it is seen: {seen}", flush=True)
    matrix = Matrix(trials, make_world, worlds=read_world_count(), seen=seen)
    yield matrix
    matrix.stop()
    print("\n" + matrix.render(), flush=True)
    if report := os.environ.get("FAILPOINTS_REPORT"):
        Path(report).write_text(matrix.render() + "\n")


@pytest.mark.parametrize("trial", [pytest.param(case, id=case.id, marks=mark(case)) for case in CASES])
def test_the_task_ends_as_it_should_and_in_time(matrix: Matrix, trial: Case):
    seconds = matrix.result(trial)

    assert seconds <= trial.within


@pytest.mark.failpoints
@pytest.mark.parametrize("trial", [pytest.param(rule, id=rule.id) for rule in RULES])
def test_the_rules_hold_when_more_than_one_part_is_away(matrix: Matrix, trial: Rule):
    seconds = matrix.result(trial)

    assert seconds <= trial.within


@pytest.mark.faults
@pytest.mark.failpoints
def test_nothing_is_left_when_all_cases_are_over(matrix: Matrix):
    matrix.check_nothing_is_left()
