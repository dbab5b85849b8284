"""Restarts in order, one part at a time, under a light load: nobody notices.

Two of each service that answers requests, and an operator's proxy in front of two gateways.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import requests
from docker.models.containers import Container

from tests.faults.balancer import Balancer
from tests.faults.chaos import list_replicas
from tests.faults.probes import is_there
from tests.faults.work import Client
from tests.integration.client import User, shell, sign_up
from tests.integration.stack import Stack
from tests.polling import wait_until

pytestmark = pytest.mark.faults

CLIENTS = 4
SERVED = ("scheduler", "scheduler-logs", "users")
LOOPS = ("scheduler-loops", "executor")


@pytest.fixture(scope="module")
def two_of_each(stack: Stack) -> Iterator[None]:
    for service in SERVED:
        stack.scale(service, 2)
    wait_until(lambda: _all_answer(stack), what="both of each answered", seconds=40.0, every=0.5)
    yield
    for service in SERVED:
        stack.scale(service, 1)
    stack.wait_until_ready(executors=3)


@pytest.fixture
def two_gateways(stack: Stack) -> Iterator[list[Container]]:
    """Each on a port of its own, as the settings say it."""
    port = int(stack.settings["GATEWAY_PORT"])
    stack.bring_up("gateway", GATEWAYS="2", GATEWAY_PORT=f"{port}-{port + 1}")
    containers = stack.containers("gateway")
    assert len(containers) == 2
    wait_until(lambda: all(_is_alive(_read_port(each)) for each in containers), what="both were up", seconds=40.0)
    yield containers
    stack.bring_up("gateway")
    stack.wait_until_ready(executors=3)


@pytest.fixture
def user(stack: Stack) -> User:
    return sign_up(stack.url)


class Load:
    """A few clients that read, and create tasks, one request after the other."""

    def __init__(self, url: str, user: User) -> None:
        self.client = Client(url, user.api.token)
        self.created: list[str] = []
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(CLIENTS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(60.0)

    def _work(self) -> None:
        count = 0
        while not self._stopping.wait(0.1):
            count += 1
            if count % 10 == 0:
                response = self.client.call("POST", "/api/tasks/", json=shell("sleep 1"))
                if response is not None:
                    self.created.append(response.json()["id"])
            elif self.created and count % 3 == 0:
                self.client.call("GET", f"/api/tasks/{self.created[-1]}/logs")
            else:
                self.client.call("GET", "/api/tasks/?limit=1")


@pytest.mark.parametrize("service", [*SERVED, *LOOPS])
def test_no_request_fails_while_a_service_is_restarted_one_by_one(
    stack: Stack, user: User, two_of_each: None, service: str
):
    with Load(stack.url, user) as load:
        for container in list_replicas(stack, service):
            container.restart(timeout=40)
            wait_until(lambda: _all_answer(stack), what=f"{container.name} was back", seconds=40.0, every=0.5)

    assert_nobody_noticed(load, user)


def test_no_request_fails_while_gateways_behind_a_proxy_are_restarted_one_by_one(
    stack: Stack, user: User, two_gateways: list[Container]
):
    ports = {container.name: _read_port(container) for container in two_gateways}
    with Balancer(list(ports.values())) as balancer, Load(balancer.url, user) as load:
        for container in two_gateways:
            port = ports[container.name]
            with balancer.without(port):
                container.restart(timeout=40)
                wait_until(lambda port=port: _is_alive(port), what=f"{container.name} was back", seconds=40.0)

    assert sum(load.client.answers.values()) > 0
    assert_nobody_noticed(load, user)


def assert_nobody_noticed(load: Load, user: User) -> None:
    assert set(load.client.answers) <= {"200", "201"}, load.client.answers
    for task_id in load.created:
        user.api.wait_for(task_id, "completed", seconds=60.0)
        assert len(user.api.list_runs(task_id)) == 1


def _read_port(container: Container) -> int:
    container.reload()
    (binding,) = container.ports["8000/tcp"]
    return int(binding["HostPort"])


def _is_alive(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/livez", timeout=5).ok
    except requests.RequestException:
        return False


def _all_answer(stack: Stack) -> bool:
    return all(is_there(each) for service in (*SERVED, *LOOPS) for each in list_replicas(stack, service))
