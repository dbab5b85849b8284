from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.client import User, expect, expect_problem, in_seconds, shell
from tests.integration.conftest import Registry
from tests.integration.slow_registry import SlowRegistry
from tests.integration.stack import Stack
from tests.polling import wait_until

pytestmark = pytest.mark.integration

OBEDIENT = "trap 'echo stopped; exit 0' TERM; echo ready; while :; do sleep 0.05; done"
STUBBORN = "trap '' TERM; echo ready; while :; do sleep 0.05; done"


def create(user: User, script: str, **fields: Any) -> str:
    task_id: str = expect(user.api.post("/api/tasks/", shell(script, **fields)), 201)["id"]
    return task_id


def start(user: User, script: str, **fields: Any) -> str:
    """A task whose script has printed its first word."""
    task_id = create(user, script, **fields)
    wait_until(lambda: user.api.read_logs(task_id) != b"", what="the script had begun")
    return task_id


def cancel(user: User, task_id: str, status: int = 202) -> Any:
    return expect(user.api.post(f"/api/tasks/{task_id}/cancel"), status)


def is_backing_off(user: User, task_id: str) -> bool:
    waiting = user.api.get_task(task_id)["waiting"]
    return waiting is not None and waiting["code"] == "backoff"


@pytest.fixture
def held_registry(registry: Registry) -> Iterator[SlowRegistry]:
    """One that gives nothing of an image before it is closed."""
    held = SlowRegistry(registry.address)
    yield held
    held.close()


def test_a_cancelled_container_gets_sigterm_and_may_tidy_up(user: User):
    task_id = start(user, OBEDIENT, stopGraceSeconds=30)

    answer = cancel(user, task_id)

    assert answer["status"] == "running"
    task = user.api.wait_for(task_id, "cancelled")
    assert (task["exitCode"], task["reason"], task["errorMsg"]) == (0, None, None)
    assert user.api.read_logs(task_id) == b"ready\nstopped\n"


def test_a_container_that_ignores_sigterm_is_killed_after_its_grace(stack: Stack, user: User):
    task_id = start(user, STUBBORN, stopGraceSeconds=1)

    cancel(user, task_id)

    task = user.api.wait_for(task_id, "cancelled")
    assert task["exitCode"] == 137
    assert "stopGraceSeconds of 1 s" in task["errorMsg"]
    wait_until(lambda: not stack.has_task_container(task_id), what="its container was removed")


def test_a_cancel_reaches_the_container_while_redis_is_away(stack: Stack, user: User):
    task_id = start(user, OBEDIENT)
    (redis,) = stack.containers("redis")
    redis.stop(timeout=1)
    try:
        cancel(user, task_id)

        user.api.wait_for(task_id, "cancelled")
    finally:
        redis.start()
        stack.wait_until_ready()


def test_a_cancel_ends_a_pull(stack: Stack, user: User, registry: Registry, held_registry: SlowRegistry):
    image = held_registry.name(registry.push_test_image())
    task_id = create(user, "echo never", image=image)
    assert held_registry.asked.wait(20)

    cancel(user, task_id)

    task = user.api.wait_for(task_id, "cancelled")
    assert (task["startedAt"], task["exitCode"]) == (None, None)
    assert not stack.has_task_container(task_id)
    assert not registry.engine_has(image)


def test_a_cancel_before_the_due_time_ends_the_task_at_once(user: User):
    task_id = create(user, "echo never", scheduledAt=in_seconds(3600))

    assert cancel(user, task_id)["status"] == "cancelled"
    assert user.api.list_runs(task_id) == []


def test_a_cancel_while_it_backs_off_ends_the_task_at_once(user: User):
    task_id = create(user, "exit 1", retry={"maxAttempts": 5, "backoffSeconds": 3600})
    wait_until(lambda: is_backing_off(user, task_id), what="its first attempt had failed")

    assert cancel(user, task_id)["status"] == "cancelled"
    assert [run["status"] for run in user.api.list_runs(task_id)] == ["failed"]


def test_a_cancelled_attempt_is_not_tried_again(user: User):
    task_id = start(user, STUBBORN, stopGraceSeconds=0, retry={"maxAttempts": 5, "backoffSeconds": 0})

    cancel(user, task_id)

    task = user.api.wait_for(task_id, "cancelled")
    assert (task["attempts"], len(user.api.list_runs(task_id))) == (1, 1)


def test_a_second_cancel_changes_nothing_and_says_so(user: User):
    task_id = create(user, "echo never", scheduledAt=in_seconds(3600))
    first = cancel(user, task_id)

    second = cancel(user, task_id, status=200)

    assert second == first


def test_a_delete_stops_the_container_as_a_cancel_does(stack: Stack, user: User):
    task_id = start(user, STUBBORN, stopGraceSeconds=1)

    expect(user.api.delete(f"/api/tasks/{task_id}"), 204)

    expect_problem(user.api.get(f"/api/tasks/{task_id}"), 404)
    expect_problem(user.api.get(f"/api/tasks/{task_id}/runs"), 404)
    wait_until(lambda: not stack.has_task_container(task_id), what="its container was removed")


def test_nobody_cancels_what_is_not_theirs(user: User, stranger: User):
    task_id = create(user, "echo never", scheduledAt=in_seconds(3600))

    expect_problem(stranger.api.post(f"/api/tasks/{task_id}/cancel"), 404, "not_found")
    expect_problem(user.api.post("/api/tasks/no-such-task/cancel"), 404, "not_found")

    assert user.api.get_task(task_id)["status"] == "pending"
