"""The engine of the tasks, which `make faults` runs in a container: it may be killed and hurts nobody else."""

from __future__ import annotations

import docker
from docker.errors import DockerException

from tests.integration.client import IMAGE
from tests.integration.stack import Stack
from tests.polling import wait_until

START_SECONDS = 60.0
TIMEOUT_SECONDS = 60


def open_task_engine(stack: Stack) -> docker.DockerClient:
    """Its client, once it answers and has the images that tasks and their guard need."""
    socket = f"unix:///tmp/{stack.project}-engine/docker.sock"
    client: docker.DockerClient = wait_until(
        lambda: _connect(socket), what="the tasks' engine answered", seconds=START_SECONDS, every=0.2
    )
    for name in (IMAGE, stack.settings.get("TASKRUNNER_IMAGE", "taskrunner:dev")):
        client.images.load(stack.engine.images.get(name).save(named=name))
    return client


def _connect(socket: str) -> docker.DockerClient | None:
    try:
        return docker.DockerClient(base_url=socket, timeout=TIMEOUT_SECONDS)
    except DockerException:
        # It asks for the version at once.
        return None
