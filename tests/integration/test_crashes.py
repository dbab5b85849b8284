from __future__ import annotations

from typing import Any

import pytest

from tests.integration.client import Api, User, expect, expect_problem, in_seconds, new_task, shell, sign_up
from tests.integration.stack import Stack
from tests.polling import wait_until

pytestmark = pytest.mark.integration

# Long enough that the container outlives whatever is killed, short enough to wait for.
RUNNING_SECONDS = 8
END_SECONDS = 90.0


class Work:
    """Tasks of every kind: running at the time of a crash, due while it lasts, and created after it."""

    def __init__(self, user: User) -> None:
        self._api = user.api
        self._script = f"echo started; sleep {RUNNING_SECONDS}; echo done"
        self._running = [self._create(shell(self._script)) for _ in range(3)]
        for task_id in self._running:
            self._api.wait_for(task_id, "running")
        self._due = [self._create(shell("echo started; echo done", scheduledAt=in_seconds(2))) for _ in range(3)]

    def _create(self, body: dict[str, Any]) -> str:
        task_id: str = expect(self._api.post("/api/tasks/", body), 201)["id"]
        return task_id

    def assert_completes(self) -> None:
        """Each ended well, in one attempt, and its container was started once."""
        after = self._create(shell("echo started; echo done"))
        for task_id in [*self._running, *self._due, after]:
            task = self._api.wait_for(task_id, "completed", seconds=END_SECONDS)
            assert task["result"] == "started\ndone\n"
            assert self._api.read_logs(task_id) == b"started\ndone\n"
        for task_id in self._running:
            (run,) = self._api.list_runs(task_id)
            assert run["status"] == "completed"


@pytest.mark.parametrize("service", ["executor", "scheduler", "scheduler-loops", "rabbitmq", "redis", "postgres"])
def test_all_tasks_complete_although_a_part_is_killed(stack: Stack, user: User, service: str):
    work = Work(user)

    stack.kill(service)

    stack.wait_until_ready()
    work.assert_completes()


def test_all_tasks_complete_although_users_and_the_gateway_are_killed(stack: Stack, user: User):
    work = Work(user)

    stack.kill("users")
    stack.kill("gateway")

    stack.wait_until_ready()
    work.assert_completes()


def test_an_executor_that_is_stopped_in_order_hands_its_containers_to_the_next(stack: Stack, user: User):
    work = Work(user)

    stack.restart("executor")

    stack.wait_until_ready()
    work.assert_completes()


def test_without_the_broker_tasks_are_accepted_and_run_when_it_is_back(stack: Stack, user: User):
    (broker,) = stack.containers("rabbitmq")
    broker.stop(timeout=20)
    try:
        task = user.api.create_task("echo", "accepted")
        assert user.api.get_task(task["id"])["status"] in ("pending", "queued")
    finally:
        broker.start()

    assert user.api.wait_for(task["id"], "completed", seconds=END_SECONDS)["result"] == "accepted\n"
    stack.wait_until_ready()


def test_without_redis_everything_works(stack: Stack, user: User):
    (redis,) = stack.containers("redis")
    redis.stop(timeout=10)
    try:
        task = user.api.run("echo", "without", seconds=END_SECONDS)
        assert task["result"] == "without\n"
    finally:
        redis.start()

    stack.wait_until_ready()


def test_without_users_nobody_is_let_in_and_the_open_paths_say_why(stack: Stack, url: str):
    user = sign_up(url)
    (users,) = stack.containers("users")
    users.stop(timeout=30)
    try:
        wait_until(lambda: user.api.get("/api/tasks/").status_code == 503, what="nobody was let in", seconds=10)
        response = Api(url).post("/api/users/login", {"email": user.email, "password": user.password})
        expect_problem(response, 503)
        assert int(response.headers["Retry-After"]) > 0
        assert Api(url).get("/api/health").status_code == 503
    finally:
        users.start()

    stack.wait_until_ready()
    expect(user.api.get("/api/tasks/"), 200)


def test_without_the_database_requests_are_told_to_come_back_and_containers_go_on(stack: Stack, user: User):
    work = Work(user)
    (postgres,) = stack.containers("postgres")
    postgres.stop(timeout=30)
    try:
        for response in (
            user.api.post("/api/tasks/", new_task("true")),
            user.api.get("/api/tasks/"),
            Api(user.api.url).post("/api/users/login", {"email": user.email, "password": user.password}),
        ):
            expect_problem(response, 503)
            assert int(response.headers["Retry-After"]) > 0
    finally:
        postgres.start()

    stack.wait_until_ready()
    work.assert_completes()
