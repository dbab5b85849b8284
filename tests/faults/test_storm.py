"""The promises, under faults: one storm, and each promise looked at afterwards."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.faults.oracle import NANOSECONDS
from tests.faults.plan import ROLES, SERVERS, WIPES
from tests.faults.storm import END_SECONDS, Storm
from tests.integration.client import TERMINAL, to_time

pytestmark = pytest.mark.faults

RECOVERY_SECONDS = 40.0
# Far less than the clock is off; the engine's time, asked now and then, is known to less.
SAME_SECONDS = 5.0


def test_the_storm_was_as_bad_as_it_was_meant_to_be(storm: Storm):
    numbers, kills, kinds = storm.settings.numbers, storm.kills(), storm.kinds()

    assert not [each for each in storm.struck if each.error]
    assert sum(kills[role] for role in ROLES) >= numbers.kills
    assert min(kills[role] for role in ROLES) >= numbers.kills_each_role
    assert min(kills[server] for server in SERVERS) >= numbers.restarts_each_server
    assert len(storm.engine_ends) >= numbers.engine_restarts
    assert kinds["cut"] >= numbers.cuts
    assert kinds["purge"] + kinds["delete"] >= numbers.wipes
    assert all(each.detail > 0 for each in storm.list_struck(*WIPES)), "nothing was lost with a wipe"
    assert sum(each.detail for each in storm.list_struck("duplicate")) >= numbers.duplicates
    assert len(storm.accepted) == storm.settings.tasks
    assert not storm.given_up
    assert not storm.failures


def test_every_accepted_task_has_ended_as_its_command_did(storm: Storm):
    assert not storm.open_at_the_end, f"still open {END_SECONDS:g} s after the last fault"
    for accepted in [*storm.accepted, *storm.calm]:
        task = storm.tasks[accepted.task_id]
        assert (task["status"], task["exitCode"]) == (accepted.status, accepted.order.exit_code), task
        assert task["result"] == accepted.output, task
    assert {task["status"] for task in storm.tasks.values()} <= set(TERMINAL)


def test_the_output_of_every_task_is_complete(storm: Storm):
    wrong = {
        accepted.task_id: storm.logs[accepted.task_id]
        for accepted in [*storm.accepted, *storm.calm]
        if storm.logs[accepted.task_id] != accepted.output.encode()
    }

    assert not wrong


def test_no_task_ran_twice_at_a_time(storm: Storm):
    assert not storm.findings.overlaps


def test_no_run_was_started_twice(storm: Storm):
    assert not storm.findings.restarts
    assert not storm.findings.unfinished


def test_every_task_was_started_once_since_what_runs_is_adopted_and_not_run_again(storm: Storm):
    # Only the engine's own end takes a container away.
    lost = storm.lost_with_the_engine()
    starts = {task_id: len(storm.findings.intervals.get(task_id, ())) for task_id in storm.tasks}

    assert {task_id: count for task_id, count in starts.items() if task_id not in lost and count != 1} == {}
    assert all(1 <= starts[task_id] <= 1 + lost[task_id] for task_id in lost)


def test_what_ran_when_its_engine_went_down_is_never_believed_to_have_ended_by_itself(storm: Storm):
    cut_off = Counter(
        task_id
        for task_id, intervals in storm.findings.intervals.items()
        for interval in intervals
        if interval.with_engine
    )
    lost = storm.lost_with_the_engine()

    assert {task_id: count for task_id, count in cut_off.items() if lost[task_id] < count} == {}


def test_an_executor_whose_clock_is_an_hour_ahead_makes_no_difference(storm: Storm):
    assert storm.clock_off_seconds == pytest.approx(3600, abs=60)
    by_it = [
        (task_id, run)
        for task_id, runs in storm.runs.items()
        for run in runs
        if run["executorId"] == storm.executor_ahead and run["status"] in ("completed", "failed")
    ]

    assert by_it
    for task_id, run in by_it:
        begun = [interval.began / NANOSECONDS for interval in storm.findings.intervals[task_id]]
        started_at = to_time(run["startedAt"]).timestamp()
        assert min(abs(started_at - each) for each in begun) < SAME_SECONDS, run
        assert run["reason"] != "timeout"


def test_no_terminal_task_changed(storm: Storm):
    assert storm.watch_rounds > 10
    assert not storm.changed


def test_tasks_that_no_fault_touched_took_one_attempt(storm: Storm):
    assert {len(storm.runs[accepted.task_id]) for accepted in storm.calm} == {1}
    assert {storm.tasks[accepted.task_id]["attempts"] for accepted in storm.calm} == {1}
    assert not storm.unexplained_runs()


def test_nearly_everything_has_recovered_in_forty_seconds_after_the_last_fault(storm: Storm):
    seconds = storm.recovered_after_seconds()

    assert not seconds or seconds[min(len(seconds) - 1, round(len(seconds) * 0.99))] <= RECOVERY_SECONDS


def test_nothing_of_the_tasks_is_left_on_the_engine_or_alive_in_the_database(storm: Storm):
    assert storm.clean_after_seconds is not None, dict(storm.left)


def test_users_were_told_to_come_back_and_nothing_else(storm: Storm):
    assert not storm.unexpected
