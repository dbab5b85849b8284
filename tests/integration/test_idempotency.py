from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from tests.integration.client import Api, User, expect, expect_problem, new_task, sign_up
from tests.integration.stack import Stack

pytestmark = pytest.mark.integration

LATER = "2030-01-31T08:15:00Z"
TASK = new_task("true", scheduledAt=LATER)


@pytest.fixture
def owner(url: str) -> User:
    return sign_up(url)


def post(api: Api, path: str, body: Any, key: str) -> requests.Response:
    return api.post(path, body, headers={"Idempotency-Key": key})


def count(api: Api) -> int:
    return sum(expect(api.get("/api/tasks/stats"), 200)["byStatus"].values())


def test_the_same_request_with_its_key_is_done_once(owner: User):
    for path, body in (("/api/tasks/", TASK), ("/api/tasks/batch", {"tasks": [TASK, TASK]})):
        first, second = (post(owner.api, path, body, path) for _ in range(2))

        assert expect(second, 201) == expect(first, 201)
        assert second.headers.get("Location") == first.headers.get("Location")
        assert "Idempotency-Replayed" not in first.headers
        assert second.headers["Idempotency-Replayed"] == "true"
        assert second.headers["X-Request-Id"] != first.headers["X-Request-Id"]
    assert count(owner.api) == 3


def test_reruns_with_a_key_are_made_once(owner: User):
    task = owner.api.create_task("true", scheduledAt=LATER)

    one = [post(owner.api, f"/api/tasks/{task['id']}/rerun", None, "one") for _ in range(2)]
    many = [post(owner.api, "/api/tasks/rerun", {"ids": [task["id"]]}, "many") for _ in range(2)]

    assert expect(one[0], 201) == expect(one[1], 201)
    assert expect(many[0], 200) == expect(many[1], 200) == {"matched": 1, "changed": 1}
    assert count(owner.api) == 3


def test_a_key_that_was_used_for_something_else_is_422(owner: User, user: User):
    expect(post(owner.api, "/api/tasks/", TASK, "k"), 201)

    expect_problem(post(owner.api, "/api/tasks/", TASK | {"priority": 1}, "k"), 422, "idempotency_key_reused")
    expect_problem(post(owner.api, "/api/tasks/batch", {"tasks": [TASK]}, "k"), 422, "idempotency_key_reused")
    theirs = expect(post(user.api, "/api/tasks/", TASK, "k"), 201)
    assert theirs["userId"] == user.id
    assert count(owner.api) == 1


@pytest.mark.parametrize("key", ["", "a b", "a" * 129, "\xe9"], ids=["empty", "space", "129", "no ASCII"])
def test_a_key_that_is_none_is_422(owner: User, key: str):
    problem = expect_problem(
        owner.api.post("/api/tasks/", TASK, headers={"Idempotency-Key": key.encode("latin-1")}), 422
    )

    assert list(problem["errors"]) == ["Idempotency-Key"]
    assert count(owner.api) == 0


def test_of_many_requests_at_once_one_is_done(owner: User, url: str):
    def send(_number: int) -> requests.Response:
        return post(Api(url, owner.api.token), "/api/tasks/", TASK, "same")

    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(send, range(10)))

    assert len({expect(answer, 201)["id"] for answer in answers}) == 1
    assert sum("Idempotency-Replayed" in answer.headers for answer in answers) == 9
    assert count(owner.api) == 1


def test_a_key_outlives_the_services(owner: User, stack: Stack):
    first = post(owner.api, "/api/tasks/", TASK, "k")
    stack.restart("scheduler")
    stack.wait_until_ready()

    second = post(owner.api, "/api/tasks/", TASK, "k")

    assert expect(second, 201) == expect(first, 201)
