"""Fair and in order: priority, shares, quotas, groups, pools, the queue's time limit, the place in the line."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest

from tests.integration.client import Api, User, expect, expect_problem, in_seconds, new_task, sign_up, to_time
from tests.integration.stack import Stack
from tests.polling import wait_until

pytestmark = pytest.mark.integration


@pytest.fixture
def newcomer(url: str) -> User:
    return sign_up(url)


@pytest.fixture
def hog(url: str) -> Iterator[User]:
    """Somebody with a backlog, which is gone afterwards."""
    hog = sign_up(url)
    yield hog
    while tasks := expect(
        hog.api.get("/api/tasks/", params={"status": "pending,queued,running", "limit": 200}), 200
    )["items"]:
        for task in tasks:
            hog.api.delete(f"/api/tasks/{task['id']}")


def count_slots(admin: User) -> int:
    items = expect(admin.api.get("/api/executors/"), 200)["items"]
    return sum(item["slots"] for item in items if item["state"] == "active" and "default" in item["pools"])


def fill(user: User, count: int, **fields: Any) -> list[str]:
    with ThreadPoolExecutor(8) as threads:
        api = user.api
        return list(threads.map(lambda _: api.create_task("sleep", "1", **fields)["id"], range(count)))


def set_quota(admin: User, user: User, **quota: Any) -> Any:
    return expect(admin.api.put(f"/api/users/{user.id}/quota", quota), 200)


def test_a_newcomers_task_starts_within_one_run_of_anothers_backlog(admin: User, hog: User, newcomer: User):
    slots = count_slots(admin)
    backlog = fill(hog, 8 * slots)
    wait_until(lambda: hog.api.get_task(backlog[0])["status"] == "running", what="the backlog began")

    task = newcomer.api.create_task("true")
    ended = newcomer.api.wait_for(task["id"], "completed")

    started = to_time(ended["startedAt"])
    overtaken_by = 0
    for task_id in backlog:
        other = hog.api.get_task(task_id)
        if other["startedAt"] and to_time(task["createdAt"]) < to_time(other["startedAt"]) < started:
            overtaken_by += 1
    # One run's time is as many starts as there are slots.
    assert overtaken_by <= slots + 1


def test_a_more_urgent_task_overtakes_what_waits(admin: User, hog: User):
    slots = count_slots(admin)
    fill(hog, 5 * slots)
    last = hog.api.create_task("true")

    urgent = hog.api.create_task("true", priority=9)
    urgent = hog.api.wait_for(urgent["id"], "completed")

    assert hog.api.get_task(last["id"])["status"] in ("pending", "queued")


def test_a_task_in_the_line_says_how_many_go_before_it(admin: User, hog: User):
    fill(hog, 4 * count_slots(admin))
    task = hog.api.create_task("true")

    wait_until(lambda: hog.api.get_task(task["id"])["position"], what="it had a place in the line")
    waiting = hog.api.get_task(task["id"])

    assert waiting["waiting"]["code"] == "behind_others"
    assert waiting["position"] > 1
    assert f"{waiting['position'] - 1} other tasks go before it" in waiting["waiting"]["text"]
    # Its place only gets better.
    wait_until(
        lambda: (hog.api.get_task(task["id"])["position"] or 0) < waiting["position"],
        what="it came closer",
    )


@pytest.mark.parametrize("quota", [{"queued": 7}, {"createdPerMinute": 7}])
def test_of_requests_at_once_exactly_as_many_are_accepted_as_the_quota_says(
    admin: User, newcomer: User, quota: dict[str, int]
):
    set_quota(admin, newcomer, **quota)
    body = new_task("true", scheduledAt=in_seconds(3600))

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: newcomer.api.post("/api/tasks/", body), range(40)))

    refused = [answer for answer in answers if answer.status_code != 201]
    assert len(answers) - len(refused) == 7
    for answer in refused:
        problem = expect_problem(answer, 429, "quota_exceeded")
        assert "7" in problem["detail"]
        assert int(answer.headers["Retry-After"]) > 0


def test_over_the_running_quota_tasks_wait_and_say_so(admin: User, newcomer: User):
    set_quota(admin, newcomer, running=1)
    tasks = [newcomer.api.create_task("sleep", "1")["id"] for _ in range(3)]

    wait_until_held_back(newcomer, tasks[2], by="quota")
    ended = [newcomer.api.wait_for(task_id, "completed") for task_id in tasks]

    assert_apart(ended)


def test_a_quota_is_the_admins_to_set_and_its_users_to_see(admin: User, newcomer: User, stranger: User):
    path = f"/api/users/{newcomer.id}/quota"

    quota = set_quota(admin, newcomer, running=2, queued=None, createdPerMinute=10)

    assert expect(newcomer.api.get(path), 200) == expect(admin.api.get(path), 200) == quota
    assert (quota["running"], quota["queued"], quota["createdPerMinute"]) == (2, None, 10)
    expect_problem(newcomer.api.put(path, {"running": 100}), 403, "role_lacking")
    expect_problem(stranger.api.get(path), 404)
    expect_problem(Api(newcomer.api.url).get(path), 401)
    expect_problem(admin.api.put(path, {"running": -1}), 422)
    expect_problem(admin.api.put("/api/users/00000000-0000-4000-8000-000000000000/quota", {}), 404)
    # What it replaced is as it was: the user itself.
    assert expect(admin.api.get(f"/api/users/{newcomer.id}"), 200)["email"] == newcomer.email


def test_tasks_of_one_group_never_run_more_than_so_many_at_a_time(newcomer: User):
    group = {"key": "one at a time", "limit": 1}
    tasks = [newcomer.api.create_task("sleep", "0.5", concurrency=group)["id"] for _ in range(5)]

    wait_until_held_back(newcomer, tasks[4], by="concurrency")
    ended = [newcomer.api.wait_for(task_id, "completed") for task_id in tasks]

    assert_apart(ended)
    assert ended[0]["concurrency"] == group


def wait_until_held_back(user: User, task_id: str, *, by: str) -> None:
    """Between two that are let through there is a moment in which nothing holds the task back."""
    wait_until(
        lambda: (user.api.get_task(task_id)["waiting"] or {}).get("code") == by,
        what=f"it was held back by its {by}",
    )


def assert_apart(tasks: list[Any]) -> None:
    """No two of them ran at the same time."""
    in_order = sorted(tasks, key=lambda task: str(task["startedAt"]))
    for before, after in pairwise(in_order):
        assert to_time(before["finishedAt"]) <= to_time(after["startedAt"])


def test_a_task_that_nobody_takes_in_time_fails_with_a_reason(newcomer: User):
    task = newcomer.api.create_task("true", pool="nobody-serves-this", queueTtlSeconds=1)
    waiting = newcomer.api.get_task(task["id"])

    ended = newcomer.api.wait_for(task["id"], "failed")

    assert waiting["waiting"]["code"] == "no_executor"
    assert "nobody-serves-this" in waiting["waiting"]["text"]
    assert (ended["reason"], ended["attempts"], ended["startedAt"]) == ("queue_ttl_expired", 0, None)


def test_tasks_of_a_pool_wait_for_its_executors_and_run_there(stack: Stack, admin: User, newcomer: User):
    task = newcomer.api.create_task("echo", "here", pool="gpu")
    wait_until(
        lambda: newcomer.api.get_task(task["id"])["waiting"]["code"] == "no_executor",
        what="it waited for the pool",
    )

    with stack.another_executor(EXECUTOR_POOLS="gpu", EXECUTOR_SLOTS="1") as executor_id:
        ended = newcomer.api.wait_for(task["id"], "completed")
        listed = {item["id"]: item for item in expect(admin.api.get("/api/executors/"), 200)["items"]}

    (run,) = newcomer.api.list_runs(task["id"])
    assert (ended["result"], ended["pool"], run["executorId"]) == ("here\n", "gpu", executor_id)
    assert listed[executor_id]["pools"] == ["gpu"]


def test_a_drained_executor_ends_what_it_runs_and_takes_nothing_until_it_is_undrained(
    stack: Stack, admin: User, newcomer: User
):
    with stack.another_executor(EXECUTOR_POOLS="drained", EXECUTOR_SLOTS="2") as executor_id:
        running = newcomer.api.create_task("sleep", "2", pool="drained")
        newcomer.api.wait_for(running["id"], "running")

        drained = expect(admin.api.post(f"/api/executors/{executor_id}/drain"), 200)
        waits = newcomer.api.create_task("true", pool="drained")
        newcomer.api.wait_for(running["id"], "completed")
        still = newcomer.api.get_task(waits["id"])
        expect(admin.api.post(f"/api/executors/{executor_id}/undrain"), 200)
        newcomer.api.wait_for(waits["id"], "completed")

    assert (drained["state"], drained["running"]) == ("draining", 1)
    assert (still["status"], still["waiting"]["code"]) == ("pending", "no_executor")
    expect_problem(newcomer.api.post(f"/api/executors/{executor_id}/drain"), 403, "role_lacking")
    expect_problem(admin.api.post("/api/executors/nobody/drain"), 404)
