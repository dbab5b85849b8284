"""Each row of the crash table, with the process that is there killed, frozen or cut off: `make failpoints`.

Kills are part of `make faults`. All cases run at once, in several worlds, from the first test of any on; a test
waits for its own.
"""

from __future__ import annotations

import pytest

from tests.faults.case import Case
from tests.faults.crash_table import KILL, RESTART, TABLE
from tests.faults.matrix import Matrix, read_repeat
from tests.faults.rules import CHECKS, Rule

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
