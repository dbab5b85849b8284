"""Fixtures for tests that go through the gateway of a composed system: `make test-integration`."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import docker
import pytest
import requests

from tests.integration.client import IMAGE, Api, User, log_in, sign_up
from tests.integration.stack import REPOSITORY, Stack, open_stack
from tests.polling import wait_until


@pytest.fixture(scope="session")
def stack(engine: docker.DockerClient) -> Stack:
    if "ENV_FILE" not in os.environ:
        pytest.fail(
            "These tests need a composed system of their own: `make test-integration` brings it up. To use one "
            "that runs already: ENV_FILE=deploy/.env .venv/bin/pytest tests/integration",
            pytrace=False,
        )
    stack = open_stack(engine)
    stack.wait_until_ready()
    return stack


@pytest.fixture(scope="session")
def url(stack: Stack) -> str:
    return stack.url


@pytest.fixture
def anyone(url: str) -> Api:
    return Api(url)


@pytest.fixture(scope="session")
def admin(stack: Stack) -> User:
    """The admin that a new system has."""
    return log_in(stack.url, stack.settings["ADMIN_EMAIL"], stack.settings["ADMIN_PASSWORD"])


@pytest.fixture(scope="session")
def user(url: str) -> User:
    """A user whom all tests share; a test that changes its user signs one up."""
    return sign_up(url, name="Ada")


@pytest.fixture(scope="session")
def stranger(url: str) -> User:
    """Another user, who has nothing to do with the first."""
    return sign_up(url, name="Mallory")


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry that the engine can pull from, at `address`."""

    address: str
    engine: docker.DockerClient

    def push_test_image(self) -> str:
        """The reference of an image that only the registry has."""
        reference = f"{self.address}/test-{secrets.token_hex(6)}:1"
        repository, _, tag = reference.rpartition(":")
        self.engine.images.get(IMAGE).tag(repository, tag)
        self.engine.images.push(repository, tag=tag)
        self.engine.images.remove(reference)
        return reference

    def engine_has(self, reference: str) -> bool:
        return bool(self.engine.images.list(name=reference))


@pytest.fixture(scope="session")
def registry(engine: docker.DockerClient) -> Iterator[Registry]:
    subprocess.run(["deploy/images.sh", "registry:2"], cwd=REPOSITORY, check=True, capture_output=True)
    container = engine.containers.run("registry:2", detach=True, ports={"5000/tcp": ("127.0.0.1", None)})
    try:
        container.reload()
        port = container.ports["5000/tcp"][0]["HostPort"]
        address = f"127.0.0.1:{port}"
        wait_until(lambda: _answers(f"http://{address}/v2/"), what="the registry answered")
        yield Registry(address, engine)
    finally:
        container.remove(force=True, v=True)


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=2).ok
    except requests.RequestException:
        return False
