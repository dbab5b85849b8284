from __future__ import annotations

from typing import Any

import pytest

from tests.integration.client import User, expect, expect_problem, in_seconds, new_task, shell, to_time
from tests.integration.stack import Stack
from tests.polling import wait_until

pytestmark = pytest.mark.integration

AT_ONCE = {"maxAttempts": 3, "backoffSeconds": 0}


def create(user: User, script: str, **fields: Any) -> str:
    task_id: str = expect(user.api.post("/api/tasks/", shell(script, **fields)), 201)["id"]
    return task_id


def test_a_task_is_tried_again_until_it_succeeds(user: User):
    script = 'echo "attempt $TASK_ATTEMPT"; [ "$TASK_ATTEMPT" -ge 3 ] || exit 7'

    task = user.api.wait_for(create(user, script, retry=AT_ONCE))

    assert (task["status"], task["reason"], task["exitCode"], task["attempts"]) == ("completed", None, 0, 3)
    assert task["result"] == "attempt 3\n"
    runs = user.api.list_runs(task["id"])
    assert [(run["number"], run["status"], run["reason"], run["exitCode"]) for run in runs] == [
        (3, "completed", None, 0),
        (2, "failed", "exit_nonzero", 7),
        (1, "failed", "exit_nonzero", 7),
    ]
    for number in (1, 2, 3):
        assert user.api.read_logs(task["id"], attempt=number) == f"attempt {number}\n".encode()


def test_a_task_fails_when_its_last_attempt_has_failed_and_says_why(user: User):
    task = user.api.wait_for(create(user, 'echo "on $TASK_ATTEMPT" >&2; exit 9', retry=AT_ONCE))

    assert (task["status"], task["reason"], task["exitCode"], task["attempts"]) == ("failed", "exit_nonzero", 9, 3)
    assert "on 3" in task["errorMsg"]
    assert len(user.api.list_runs(task["id"])) == 3


def test_attempts_are_apart_by_the_backoff(user: User):
    task = user.api.wait_for(create(user, "exit 1", retry={"maxAttempts": 3, "backoffSeconds": 1}))

    third, second, first = user.api.list_runs(task["id"])
    pauses = [
        (to_time(later["queuedAt"]) - to_time(earlier["finishedAt"])).total_seconds()
        for earlier, later in ((first, second), (second, third))
    ]
    # A second, then two, each less a quarter at most.
    assert pauses[0] >= 0.75
    assert pauses[1] >= 1.5


def test_a_task_that_backs_off_says_until_when(user: User):
    task_id = create(user, "exit 1", retry={"maxAttempts": 2, "backoffSeconds": 600})

    def find_backoff() -> dict[str, Any] | None:
        waiting: dict[str, Any] | None = user.api.get_task(task_id)["waiting"]
        return waiting if waiting and waiting["code"] == "backoff" else None

    waiting = wait_until(find_backoff, what="its first attempt had failed")

    assert waiting is not None
    assert waiting["text"].startswith("Attempt 1 of 2 failed; it is tried again at 20")


@pytest.mark.parametrize(("code", "attempts"), [(75, 2), (1, 1)])
def test_with_a_list_only_its_exit_codes_are_tried_again(user: User, code: int, attempts: int):
    retry = {"maxAttempts": 2, "backoffSeconds": 0, "onExitCodes": [74, 75]}

    task = user.api.wait_for(create(user, f"exit {code}", retry=retry))

    assert (task["status"], task["exitCode"], task["attempts"]) == ("failed", code, attempts)


def test_a_time_limit_is_one_of_each_attempt(user: User):
    retry = {"maxAttempts": 2, "backoffSeconds": 0}

    task = user.api.wait_for(create(user, "sleep 600", retry=retry, timeoutSeconds=1, stopGraceSeconds=0))

    assert (task["status"], task["reason"], task["attempts"]) == ("failed", "timeout", 2)
    assert {run["reason"] for run in user.api.list_runs(task["id"])} == {"timeout"}


def test_what_no_attempt_can_mend_is_not_tried_again(user: User):
    task = user.api.run("/no/such/command", retry=AT_ONCE)

    assert (task["status"], task["reason"], task["attempts"]) == ("failed", "invalid_command", 1)


def test_a_run_that_was_lost_is_not_one_of_the_tasks_attempts(stack: Stack, user: User):
    script = 'echo "run $TASK_ATTEMPT"; [ "$TASK_ATTEMPT" -ge 2 ] || sleep 600'
    task_id = create(user, script)
    wait_until(lambda: user.api.read_logs(task_id) != b"", what="it ran")

    stack.task_container(task_id).remove(force=True)

    task = user.api.wait_for(task_id, "completed")
    assert (task["attempts"], task["result"]) == (1, "run 2\n")
    assert [(run["number"], run["status"], run["reason"]) for run in user.api.list_runs(task_id)] == [
        (2, "completed", None),
        (1, "lost", "executor_lost"),
    ]


def test_a_container_is_told_who_it_is(user: User):
    due = in_seconds(1.5)
    script = 'echo "$TASK_ID $RUN_ID $TASK_ATTEMPT $TASK_SCHEDULED_AT"'

    task = user.api.wait_for(create(user, script, scheduledAt=due), "completed")

    task_id, run_id, attempt, scheduled_at = task["result"].split()
    assert (task_id, attempt) == (task["id"], "1")
    assert len(run_id) == 36
    assert scheduled_at == task["scheduledAt"]
    assert to_time(scheduled_at) == to_time(due)


def test_a_task_shows_how_it_is_tried_again(user: User):
    retry = {"maxAttempts": 4, "backoffSeconds": 10, "maxBackoffSeconds": 40, "onExitCodes": [1, 2]}

    given = user.api.create_task("true", scheduledAt=in_seconds(3600), retry=retry)
    default = user.api.create_task("true", scheduledAt=in_seconds(3600))

    assert given["retry"] == retry
    assert default["retry"] == {
        "maxAttempts": 1,
        "backoffSeconds": 5,
        "maxBackoffSeconds": 300,
        "onExitCodes": None,
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"retry": {"maxAttempts": 0}},
        {"retry": {"maxAttempts": 21}},
        {"retry": {"backoffSeconds": -1}},
        {"retry": {"backoffSeconds": 60, "maxBackoffSeconds": 59}},
        {"retry": {"onExitCodes": [0]}},
        {"retry": {"onExitCodes": "all"}},
        {"retry": {"delay": 5}},
        {"retry": None},
        {"environment": {"TASK_ID": "mine"}},
    ],
)
def test_a_wrong_retry_is_refused_and_makes_no_task(user: User, fields: dict[str, Any]):
    before = expect(user.api.get("/api/tasks/?limit=1"), 200)["items"][:1]

    problem = expect_problem(user.api.post("/api/tasks/", new_task("true", **fields)), 422)

    assert set(problem["errors"]) == set(fields)
    assert expect(user.api.get("/api/tasks/?limit=1"), 200)["items"][:1] == before
