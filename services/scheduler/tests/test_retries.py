"""Retries over a real database: attempts, backoff, and what ends them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from libs.common.clock import parse_time, utc_now

pytestmark = pytest.mark.component

FAST = {"maxAttempts": 3, "backoffSeconds": 0}
SLOW = {"maxAttempts": 3, "backoffSeconds": 600}


@pytest.fixture
def fail(executor, dispatcher, publisher):
    """Dispatch what is due, and have its run fail."""

    def fail(*, reason="exit_nonzero", exit_code=3, **fields):
        assert dispatcher.run_once().dispatched == 1
        run_id = publisher.sent[-1]
        executor.claim(run_id)
        executor.start(run_id)
        executor.finish(run_id, "failed", reason=reason, exitCode=exit_code, errorMsg="it broke", **fields)

    return fail


def list_runs(user, task):
    return user("GET", f"/api/tasks/{task['id']}/runs").json["items"]


def test_a_failed_task_is_tried_again_until_its_attempts_are_used_up(user, fail):
    task = user.create(retry=FAST)

    seen = []
    for _ in range(3):
        fail()
        seen.append(user.get(task["id"]))

    assert [each["status"] for each in seen] == ["pending", "pending", "failed"]
    assert [each["attempts"] for each in seen] == [1, 2, 3]
    assert (seen[2]["reason"], seen[2]["exitCode"], seen[2]["errorMsg"]) == ("exit_nonzero", 3, "it broke")
    assert [(run["number"], run["status"], run["reason"]) for run in list_runs(user, task)] == [
        (number, "failed", "exit_nonzero") for number in (3, 2, 1)
    ]


def test_nothing_of_an_attempt_that_is_made_up_for_shows_at_the_task(user, fail):
    task = user.create(retry=SLOW)

    fail(result=b"half")

    shown = user.get(task["id"])
    assert shown["status"] == "pending"
    for field in ("reason", "exitCode", "errorMsg", "result", "queuedAt", "startedAt", "finishedAt"):
        assert shown[field] is None, field


def test_a_task_that_backs_off_says_until_when(user, fail):
    task = user.create(retry=SLOW)
    begun = utc_now()

    fail()

    waiting = user.get(task["id"])["waiting"]
    assert waiting["code"] == "backoff"
    assert waiting["text"].startswith("Attempt 1 of 3 failed; it is tried again at ")
    until = parse_time(waiting["text"].removesuffix(".").rpartition(" ")[2])
    assert begun + timedelta(seconds=450) <= until <= utc_now() + timedelta(seconds=600)


def test_nothing_is_dispatched_before_the_backoff_is_over(user, fail, dispatcher):
    user.create(retry=SLOW)

    fail()

    assert dispatcher.run_once().dispatched == 0


def test_a_success_after_a_failure_completes_the_task(user, fail, executor, dispatcher, publisher):
    task = user.create(retry=FAST)
    fail()

    dispatcher.run_once()
    executor.claim(publisher.sent[-1])
    executor.finish(publisher.sent[-1], result=b"done")

    shown = user.get(task["id"])
    assert (shown["status"], shown["reason"], shown["attempts"]) == ("completed", None, 2)
    assert shown["result"] == "done"
    assert [run["status"] for run in list_runs(user, task)] == ["completed", "failed"]


@pytest.mark.parametrize(
    ("codes", "reason", "exit_code", "status"),
    [
        (None, "exit_nonzero", 3, "pending"),
        (None, "timeout", 143, "pending"),
        (None, "oom_killed", 137, "pending"),
        (None, "image_pull_failed", None, "pending"),
        (None, "image_not_found", None, "failed"),
        (None, "invalid_command", None, "failed"),
        ([3], "exit_nonzero", 3, "pending"),
        ([3], "exit_nonzero", 4, "failed"),
        ([3], "timeout", 143, "failed"),
    ],
)
def test_what_is_tried_again_goes_by_reason_and_exit_code(user, fail, codes, reason, exit_code, status):
    task = user.create(retry=FAST | {"onExitCodes": codes})

    fail(reason=reason, exit_code=exit_code)

    assert user.get(task["id"])["status"] == status


def test_a_lost_run_is_not_one_of_the_tasks_own_attempts(user, fail, executor, dispatcher, publisher):
    task = user.create(retry={"maxAttempts": 2, "backoffSeconds": 0})
    fail()
    dispatcher.run_once()
    executor.claim(publisher.sent[-1])
    executor.finish(publisher.sent[-1], "lost", exitCode=None)
    assert user.get(task["id"])["attempts"] == 1

    fail()

    shown = user.get(task["id"])
    assert (shown["status"], shown["attempts"]) == ("failed", 2)
    assert [(run["number"], run["status"]) for run in list_runs(user, task)] == [
        (3, "failed"),
        (2, "lost"),
        (1, "failed"),
    ]


@pytest.mark.parametrize(("method", "path"), [("POST", "/cancel"), ("DELETE", "")])
def test_a_cancel_ends_a_backoff_at_once(user, fail, method, path):
    task = user.create(retry=SLOW)
    fail()

    answer = user(method, f"/api/tasks/{task['id']}{path}")

    if method == "DELETE":
        assert answer.status_code == 204
        assert user("GET", f"/api/tasks/{task['id']}").status_code == 404
    else:
        assert answer.status_code == 202
        assert user.get(task["id"])["status"] == "cancelled"


def test_a_run_that_fails_after_its_cancel_is_not_tried_again(user, executor, queue):
    task, run_id = queue(retry=FAST)
    executor.claim(run_id)
    executor.start(run_id)
    user("POST", f"/api/tasks/{task['id']}/cancel")

    executor.finish(run_id, "failed", reason="exit_nonzero", exitCode=1)

    assert user.get(task["id"])["status"] == "cancelled"


@pytest.mark.parametrize(
    ("retry", "field"),
    [
        ({"maxAttempts": 0}, "maxAttempts"),
        ({"maxAttempts": 21}, "maxAttempts"),
        ({"maxAttempts": "3"}, "maxAttempts"),
        ({"maxAttempts": None}, "maxAttempts"),
        ({"backoffSeconds": -1}, "backoffSeconds"),
        ({"backoffSeconds": 86_401}, "backoffSeconds"),
        ({"backoffSeconds": 0.5}, "backoffSeconds"),
        ({"backoffSeconds": 10, "maxBackoffSeconds": 9}, "maxBackoffSeconds"),
        ({"onExitCodes": []}, "onExitCodes"),
        ({"onExitCodes": [0]}, "onExitCodes"),
        ({"onExitCodes": [256]}, "onExitCodes"),
        ({"onExitCodes": ["1"]}, "onExitCodes"),
        ({"attempts": 3}, "attempts"),
    ],
)
def test_a_retry_that_makes_no_sense_is_422(user, retry, field):
    answer = user("POST", "/api/tasks/", json={"image": "busybox", "retry": retry})

    assert answer.status_code == 422
    assert any(field in message for message in answer.json["errors"]["retry"])


@pytest.mark.parametrize("retry", [None, 3, [], "always"])
def test_a_retry_that_is_no_object_is_422(user, retry):
    answer = user("POST", "/api/tasks/", json={"image": "busybox", "retry": retry})

    assert answer.status_code == 422
    assert "retry" in answer.json["errors"]


def test_a_longer_backoff_than_the_default_most_raises_that(user):
    task = user.create(retry={"backoffSeconds": 900})

    assert task["retry"] == {
        "maxAttempts": 1,
        "backoffSeconds": 900,
        "maxBackoffSeconds": 900,
        "onExitCodes": None,
    }


@pytest.mark.parametrize("name", ["TASK_ID", "RUN_ID", "TASK_ATTEMPT", "TASK_SCHEDULED_AT"])
def test_the_variables_that_the_system_sets_are_not_the_users_to_set(user, name):
    answer = user("POST", "/api/tasks/", json={"image": "busybox", "environment": {name: "mine"}})

    assert answer.status_code == 422
    assert name in str(answer.json["errors"]["environment"])
