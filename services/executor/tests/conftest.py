"""Fixtures of the executor's component tests."""

from __future__ import annotations

from collections.abc import Iterator

import docker
import pytest

from services.executor.tests.guard_rules import remove_rules
from services.executor.tests.stand import INSTANCE, Stand


@pytest.fixture(scope="session")
def _task_network(engine: docker.DockerClient) -> Iterator[None]:
    yield
    for network in engine.networks.list(names=[f"{INSTANCE}-tasks"]):
        network.remove()
    remove_rules(engine, INSTANCE)


@pytest.fixture
def stand(broker_url: str, engine: docker.DockerClient, _task_network: None) -> Iterator[Stand]:
    stand = Stand(broker_url, engine)
    yield stand
    stand.close()
