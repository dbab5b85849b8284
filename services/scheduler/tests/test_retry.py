"""What becomes of a task after each end of a run."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.retry import (
    BACKOFF_SPREAD,
    LOST_LIMIT,
    RETRIED_REASONS,
    RetryPolicy,
    decide_backoff,
    decide_ending,
    decide_retry,
)
from services.scheduler.states import TASK_MOVES, TERMINAL_RUN, Outcome, Reason, RunStatus, TaskStatus

seconds = st.integers(0, 86_400).map(lambda count: timedelta(seconds=count))
chances = st.floats(0, 1, exclude_max=True)
exit_codes = st.none() | st.integers(0, 255)
policies = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 20),
    backoff=seconds,
    max_backoff=seconds,
    on_exit_codes=st.none() | st.lists(st.integers(1, 255), min_size=1),
)
reports = st.fixed_dictionaries(
    {
        "outcome": st.sampled_from(list(Outcome)),
        "reason": st.none() | st.sampled_from(list(Reason)) | st.text(),
        "exit_code": exit_codes,
        "is_deleted": st.booleans(),
        "attempts": st.integers(1, 20),
        "lost_count": st.integers(0, LOST_LIMIT),
        "policy": policies,
        "chance": chances,
    }
)


def make_policy(**changes: Any) -> RetryPolicy:
    values: dict[str, Any] = {
        "max_attempts": 3,
        "backoff": timedelta(seconds=5),
        "max_backoff": timedelta(seconds=60),
        "on_exit_codes": None,
    }
    return RetryPolicy(**(values | changes))


def end(outcome: Outcome, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "reason": None,
        "exit_code": None,
        "stop_reason": None,
        "is_deleted": False,
        "attempts": 1,
        "lost_count": 0,
        "policy": make_policy(),
        "chance": 0.0,
    }
    return decide_ending(outcome, **(values | changes))


@given(reports, st.sampled_from([None, "cancelled"]))
def test_an_ending_closes_the_run_and_is_a_move_that_the_task_may_make(report, stop_reason):
    ending = decide_ending(**report, stop_reason=stop_reason)

    assert ending.run_status in TERMINAL_RUN
    assert ending.task_status in TASK_MOVES[TaskStatus.QUEUED] & TASK_MOVES[TaskStatus.RUNNING]
    has_failed = ending.run_status == RunStatus.FAILED or ending.task_status == TaskStatus.FAILED
    assert (ending.reason is not None) == has_failed
    assert ending.delay >= timedelta(0)


@given(reports)
def test_a_stop_request_wins_over_what_the_container_did(report):
    ending = decide_ending(**report, stop_reason="cancelled")

    assert ending.task_status == TaskStatus.CANCELLED


@given(reports)
def test_a_task_has_no_more_attempts_than_it_asks_for(report):
    report |= {"outcome": Outcome.FAILED, "attempts": report["policy"].max_attempts}

    ending = decide_ending(**report, stop_reason=None)

    assert ending.task_status in (TaskStatus.FAILED, TaskStatus.CANCELLED)


@given(policies, st.integers(1, 20), chances)
def test_a_backoff_doubles_up_to_the_most_and_loses_at_most_a_quarter(policy, failures, chance):
    whole = decide_backoff(policy, failures=failures, chance=0.0)
    shortened = decide_backoff(policy, failures=failures, chance=chance)

    assert whole <= policy.max_backoff
    assert whole in (policy.max_backoff, policy.backoff * 2 ** (failures - 1))
    assert whole * (1 - BACKOFF_SPREAD) <= shortened <= whole
    if failures > 1:
        assert whole >= decide_backoff(policy, failures=failures - 1, chance=0.0)


def test_a_failed_run_is_tried_again_with_growing_pauses_and_then_fails_with_its_reason():
    policy = make_policy(max_attempts=5, max_backoff=timedelta(seconds=30))

    endings = [
        end(Outcome.FAILED, reason="exit_nonzero", exit_code=1, attempts=attempts, policy=policy)
        for attempts in range(1, 6)
    ]

    assert [ending.delay.total_seconds() for ending in endings] == [5, 10, 20, 30, 0]
    assert [ending.task_status for ending in endings] == [TaskStatus.PENDING] * 4 + [TaskStatus.FAILED]
    assert {ending.reason for ending in endings} == {Reason.EXIT_NONZERO}


@pytest.mark.parametrize("reason", list(Reason))
def test_without_a_list_whatever_another_attempt_may_mend_is_tried_again(reason):
    assert decide_retry(reason, None, policy=make_policy()) == (reason in RETRIED_REASONS)


@pytest.mark.parametrize(
    ("reason", "exit_code", "retried"),
    [
        (Reason.EXIT_NONZERO, 75, True),
        (Reason.EXIT_NONZERO, 1, False),
        (Reason.OOM_KILLED, 137, True),
        (Reason.TIMEOUT, 143, False),
        (Reason.IMAGE_PULL_FAILED, None, False),
    ],
)
def test_with_a_list_its_exit_codes_are_tried_again_and_nothing_else(reason, exit_code, retried):
    policy = make_policy(on_exit_codes=[75, 137])

    assert decide_retry(reason, exit_code, policy=policy) is retried


def test_a_lost_run_is_made_up_for_with_growing_pauses_and_then_given_up():
    endings = [end(Outcome.LOST, lost_count=lost) for lost in range(LOST_LIMIT + 1)]

    assert [ending.delay.total_seconds() for ending in endings[:-1]] == [0, 5, 10, 15, 20]
    assert {ending.task_status for ending in endings[:-1]} == {TaskStatus.PENDING}
    assert (endings[-1].task_status, endings[-1].reason) == (TaskStatus.FAILED, Reason.EXECUTOR_LOST)


def test_a_lost_run_is_made_up_for_also_after_the_last_attempt():
    ending = end(Outcome.LOST, attempts=3)

    assert ending.task_status == TaskStatus.PENDING


def test_an_unknown_reason_counts_as_the_engines():
    ending = end(Outcome.FAILED, reason="sunspots", attempts=3)

    assert ending.reason == Reason.ENGINE_ERROR
