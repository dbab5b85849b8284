"""Parts that go silent instead of dying: nobody gets a reset, and only time limits tell."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import requests
from docker.models.containers import Container

from tests.faults.chaos import insist
from tests.faults.work import Client
from tests.integration.client import IMAGE, User, expect_problem, in_seconds, new_task, sign_up
from tests.integration.stack import Stack
from tests.polling import wait_until

pytestmark = pytest.mark.faults

# More than the scheduler's web process has threads.
CLIENTS = 24
CUT_SECONDS = 20.0
REDELIVERED_SECONDS = 25.0
HEARD_SECONDS = 2.0
PUBLISH_FAILURES = "taskrunner_publish_failures_total"
DISPATCHED = "taskrunner_dispatched_total"


@pytest.fixture
def user(stack: Stack) -> User:
    return sign_up(stack.url)


@contextmanager
def cut_off(stack: Stack, service: str, network_name: str) -> Iterator[str]:
    """Meanwhile somebody else takes the part's address, so what was in flight is never answered. The address.

    Of several replicas it is the first.
    """
    container = stack.containers(service)[0]
    name = f"{stack.project}_{network_name}"
    network = stack.engine.networks.get(name)
    attached = container.attrs["NetworkSettings"]["Networks"][name]
    network.disconnect(container)
    usurper = stack.engine.containers.run(
        IMAGE, ["sleep", "600"], detach=True, network=name, labels={"com.docker.compose.project": stack.project}
    )
    try:
        yield attached["IPAddress"]
    finally:
        network.connect(container, aliases=attached["Aliases"])
        usurper.remove(force=True)


@contextmanager
def frozen(stack: Stack, service: str) -> Iterator[None]:
    container = stack.containers(service)[0]
    insist(container.pause)
    try:
        yield
    finally:
        insist(container.unpause)


def count_connections_from(stack: Stack, service: str, address: str) -> int:
    """In the kernel's table of the part's container, where an address stands as a number in the host's order."""
    script = f"""
import ipaddress, json, socket
number = socket.htonl(int(ipaddress.IPv4Address({address!r})))
lines = open("/proc/net/tcp").read().splitlines()[1:]
print(json.dumps(sum(line.split()[1].startswith(f"{{number:08X}}:") for line in lines)))
"""
    count: int = stack.run_inside(service, script)
    return count


def read_loops_metric(container: Container, name: str) -> float:
    """From the container itself, whatever network it is cut off from."""
    script = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8004/metrics').read().decode())"
    lines = container.exec_run(["python3", "-c", script]).output.decode().splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


def test_a_database_that_went_silent_under_load_is_used_again_as_soon_as_it_is_back(stack: Stack, user: User):
    client = Client(stack.url, user.api.token)
    stopping = threading.Event()

    def ask() -> None:
        while not stopping.wait(0.05):
            client.call("GET", "/api/tasks/?limit=1")

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    time.sleep(2.0)
    try:
        with cut_off(stack, "scheduler", "database") as former_address:
            time.sleep(CUT_SECONDS)
        fresh = Client(stack.url, user.api.token)
        wait_until(
            lambda: fresh.call("GET", "/api/tasks/?limit=1"), what="the database was used again", seconds=15.0
        )
    finally:
        stopping.set()
        for thread in threads:
            thread.join(60.0)
    assert not client.unexpected
    # Each of them would keep a thread of the scheduler for a quarter of an hour. Some may have been opened, or
    # closed, just before the cut ended: the kernel gives those up a little later.
    wait_until(
        lambda: count_connections_from(stack, "scheduler", former_address) == 0,
        what="the connections of before the cut were gone",
        seconds=30.0,
        every=1.0,
    )


def test_a_frozen_database_is_given_up_by_the_services_before_the_gateway_gives_them_up(stack: Stack, user: User):
    answers: list[requests.Response] = []
    # Some find a session that was checked just now, and meet the scheduler; the others meet the users service.
    user.api.get("/api/tasks/?limit=1")
    with frozen(stack, "postgres"):
        for _ in range(3):
            answers += [user.api.get("/api/tasks/?limit=1"), user.api.post("/api/tasks/", new_task("true"))]

    for answer in answers:
        expect_problem(answer, 503)
        assert int(answer.headers["Retry-After"]) > 0
    stack.wait_until_ready(executors=3)


def test_a_replica_that_is_cut_off_from_the_broker_leaves_due_tasks_to_the_other(stack: Stack, user: User):
    cut, other = stack.containers("scheduler-loops")
    failures, dispatched = read_loops_metric(cut, PUBLISH_FAILURES), read_loops_metric(other, DISPATCHED)
    with cut_off(stack, "scheduler-loops", "broker"):
        # What it heard a moment ago it may still believe; then it asks first.
        due = in_seconds(HEARD_SECONDS)
        created = [user.api.create_task("echo", str(number), scheduledAt=due)["id"] for number in range(20)]

        for task_id in created:
            user.api.wait_for(task_id, "completed", seconds=60.0)
        assert read_loops_metric(cut, PUBLISH_FAILURES) == failures
        assert read_loops_metric(other, DISPATCHED) >= dispatched + len(created)

    stack.wait_until_ready(executors=3)


def test_messages_that_went_to_a_frozen_executor_are_delivered_to_another_in_time(stack: Stack, user: User):
    stack.wait_until_ready(executors=3)
    began = time.monotonic()
    with frozen(stack, "executor"):
        created = [user.api.create_task("echo", str(number))["id"] for number in range(16)]

        for task_id in created:
            left = began + REDELIVERED_SECONDS - time.monotonic()
            user.api.wait_for(task_id, "completed", seconds=max(left, 1.0))

    stack.wait_until_ready(executors=3)
