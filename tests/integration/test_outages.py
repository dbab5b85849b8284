"""A part is away: what its users see, what operators are told, and what is counted (docs/operations.md)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from tests.integration.client import Api, User, expect, expect_problem, new_task, shell
from tests.integration.stack import INSIDE_URLS, Stack
from tests.polling import wait_until

pytestmark = pytest.mark.integration

READ = """
import json, urllib.error, urllib.request
try:
    answer = urllib.request.urlopen({url!r}, timeout=15)
except urllib.error.HTTPError as error:
    answer = error
print(json.dumps([answer.status, answer.read().decode()]))
"""
OPEN_BROKER = """
import json, os, pika
from libs.common.topology import DEAD_QUEUE, RUNS_QUEUE
connection = pika.BlockingConnection(pika.URLParameters(os.environ["BROKER_URL"]))
channel = connection.channel()
"""
# What the killed executor had in hand comes back to the queue in a moment.
PURGE = (
    OPEN_BROKER
    + """
lost = 0
while not lost:
    connection.sleep(0.1)
    lost = channel.queue_purge(RUNS_QUEUE).method.message_count
print(json.dumps(lost))
"""
)
SPOIL = OPEN_BROKER + 'channel.basic_publish("", RUNS_QUEUE, b"{}"); connection.close(); print(json.dumps(1))'
FORGET = OPEN_BROKER + "print(json.dumps(channel.queue_purge(DEAD_QUEUE).method.message_count))"
# A sync or a pass of a loop counts as missing only after a while.
NOTICED_SECONDS = 45.0
END_SECONDS = 90.0


@dataclass(frozen=True)
class Told:
    """`create`, `read` and `login`: the statuses of what users ask for. `health`: of GET /api/health.

    `readiness`: of each service that says something of it, the status of /readyz and the check that is down.
    """

    create: int
    read: int
    login: int
    health: int
    readiness: Mapping[str, tuple[int, str]] = field(default_factory=dict)


AWAY = {
    "postgres": Told(
        create=503,
        read=503,
        login=503,
        health=503,
        readiness={
            "users": (503, "postgres"),
            "scheduler": (503, "postgres"),
            "scheduler-logs": (503, "postgres"),
            "scheduler-loops": (503, "postgres"),
        },
    ),
    "rabbitmq": Told(
        create=201,
        read=200,
        login=200,
        health=503,
        readiness={"scheduler-loops": (503, "broker"), "executor": (503, "broker")},
    ),
    "redis": Told(
        create=201,
        read=200,
        login=200,
        health=200,
        readiness={"gateway": (200, "redis"), "scheduler": (200, "redis"), "scheduler-loops": (200, "redis")},
    ),
    "users": Told(create=503, read=503, login=503, health=503, readiness={"gateway": (503, "users")}),
    "scheduler": Told(
        create=503,
        read=503,
        login=200,
        health=503,
        readiness={"gateway": (200, "scheduler"), "executor": (503, "scheduler")},
    ),
    "scheduler-loops": Told(create=201, read=200, login=200, health=503, readiness={"scheduler": (200, "loops")}),
    "scheduler-logs": Told(
        create=201, read=200, login=200, health=503, readiness={"gateway": (200, "scheduler-logs")}
    ),
    "executor": Told(create=201, read=200, login=200, health=503, readiness={"scheduler": (200, "executors")}),
}

ASKED_BY_HEALTH = ("users", "scheduler", "scheduler-logs", "scheduler-loops")


@contextmanager
def away(stack: Stack, service: str) -> Iterator[None]:
    containers = stack.containers(service)
    for container in containers:
        container.kill()
    try:
        yield
    finally:
        for container in containers:
            container.start()
        stack.wait_until_ready()


def read(stack: Stack, service: str, path: str) -> tuple[int, str]:
    """Asked by another part that is there, as a monitor would."""
    reader = next(other for other in INSIDE_URLS if other != service and stack.containers(other))
    status, text = stack.run_inside(reader, READ.format(url=INSIDE_URLS[service] + path))
    return status, text


def read_metric(stack: Stack, service: str, name: str) -> float:
    """The sum over its labels."""
    _, text = read(stack, service, "/metrics")
    lines = [line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def _health_names(anyone: Api, part: str, check: str) -> bool:
    checks: dict[str, Any] = anyone.get("/api/health").json()["services"][part].get("checks", {})
    return checks.get(check, {}).get("status") == "down"


def list_down(text: str) -> list[str]:
    checks: dict[str, Any] = json.loads(text)["checks"]
    return [name for name, check in checks.items() if check["status"] == "down"]


@pytest.mark.parametrize("service", AWAY)
def test_users_and_operators_are_told_the_truth_while_a_part_is_away(stack: Stack, user: User, service: str):
    told = AWAY[service]
    anyone = Api(stack.url)
    with away(stack, service):
        # What was known of a session is believed for some seconds.
        wait_until(
            lambda: user.api.get("/api/tasks/?limit=1").status_code == told.read,
            what="it was noticed",
            seconds=30.0,
        )
        created = user.api.post("/api/tasks/", new_task("true"))
        answers = [
            (created, told.create),
            (user.api.get("/api/tasks/?limit=1"), told.read),
            (anyone.post("/api/users/login", {"email": user.email, "password": user.password}), told.login),
        ]
        for answer, status in answers:
            if status == 503:
                expect_problem(answer, 503)
                assert int(answer.headers["Retry-After"]) > 0
            else:
                expect(answer, status)
        wait_until(
            lambda: anyone.get("/api/health").status_code == told.health,
            what=f"health was {told.health}",
            seconds=NOTICED_SECONDS,
        )
        for other, (status, check) in told.readiness.items():
            wait_until(
                lambda other=other, check=check: check in list_down(read(stack, other, "/readyz")[1]),  # type: ignore[misc]
                what=f"{other} said that {check} is down",
                seconds=NOTICED_SECONDS,
            )
            assert read(stack, other, "/readyz")[0] == status
            assert read(stack, other, "/livez")[0] == 200
            if other in ASKED_BY_HEALTH:
                wait_until(
                    partial(_health_names, anyone, other, check),
                    what=f"health said that {check} is down for {other}",
                    seconds=NOTICED_SECONDS,
                )

    if told.create == 201:
        user.api.wait_for(created.json()["id"], "completed", seconds=END_SECONDS)


def test_reports_that_the_scheduler_does_not_take_are_spooled_and_counted(stack: Stack, user: User):
    task = expect(user.api.post("/api/tasks/", shell("sleep 2; echo done")), 201)
    user.api.wait_for(task["id"], "running")
    before = read_metric(stack, "executor", "taskrunner_executor_spooled_total")

    with away(stack, "scheduler"):
        wait_until(
            lambda: read_metric(stack, "executor", "taskrunner_executor_spooled_total") > before,
            what="the report was spooled",
        )
        assert read_metric(stack, "executor", "taskrunner_executor_spool_bytes") > 0

    assert user.api.wait_for(task["id"], "completed", seconds=END_SECONDS)["result"] == "done\n"


def test_runs_that_an_executor_left_are_adopted_and_counted(stack: Stack, user: User):
    task = expect(user.api.post("/api/tasks/", shell("sleep 5; echo done")), 201)
    user.api.wait_for(task["id"], "running")
    before = read_metric(stack, "scheduler", "taskrunner_takeovers_total")

    stack.kill("executor")

    assert user.api.wait_for(task["id"], "completed", seconds=END_SECONDS)["result"] == "done\n"
    assert read_metric(stack, "scheduler", "taskrunner_takeovers_total") > before
    # Its process is a new one and counts from the beginning.
    assert read_metric(stack, "executor", "taskrunner_executor_adopted_total") == 1
    stack.wait_until_ready()


def test_messages_that_the_broker_lost_are_published_again_and_counted(stack: Stack, user: User):
    before = read_metric(stack, "scheduler-loops", "taskrunner_republished_total")
    (executor,) = stack.containers("executor")
    executor.pause()
    try:
        # It was heard of lately, so there is room for it.
        task = expect(user.api.post("/api/tasks/", new_task("echo", "again")), 201)
        user.api.wait_for(task["id"], "queued")
        executor.kill()
        lost = stack.run_inside("scheduler-loops", PURGE)
    finally:
        executor.start()

    assert lost == 1
    assert user.api.wait_for(task["id"], "completed", seconds=END_SECONDS)["result"] == "again\n"
    assert read_metric(stack, "scheduler-loops", "taskrunner_republished_total") > before
    stack.wait_until_ready()


def test_messages_that_nobody_can_read_are_dead_letters_and_counted(stack: Stack, user: User):
    stack.run_inside("scheduler-loops", SPOIL)

    wait_until(
        lambda: read_metric(stack, "scheduler-loops", "taskrunner_dead_letters") == 1, what="it was a dead letter"
    )
    assert read_metric(stack, "executor", "taskrunner_executor_dead_lettered_total") >= 1
    assert user.api.run("echo", "on")["result"] == "on\n"
    assert stack.run_inside("scheduler-loops", FORGET) == 1
