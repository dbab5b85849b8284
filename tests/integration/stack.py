"""The composed system from outside: its settings, and its containers, to look into and to kill."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import requests
from docker.models.containers import Container

from deploy.environment import gateway_url, read_settings
from tests.polling import wait_until

REPOSITORY = Path(__file__).parents[2]
READY_SECONDS = 60.0
# Seen from inside the control network.
INSIDE_URLS = {
    "gateway": "http://gateway:8000",
    "users": "http://users:8001",
    "scheduler": "http://scheduler:8002",
    "scheduler-loops": "http://scheduler-loops:8004",
    "scheduler-logs": "http://scheduler-logs:8005",
    "executor": "http://executor:8003",
}


@dataclass(frozen=True, slots=True)
class Stack:
    """The system that ENV_FILE describes (deploy/with_test_stack.sh)."""

    env_file: Path
    settings: Mapping[str, str]
    engine: docker.DockerClient

    @property
    def url(self) -> str:
        return gateway_url(self.settings)

    @property
    def project(self) -> str:
        return self.settings.get("COMPOSE_PROJECT_NAME", "task-runner")

    def containers(self, service: str) -> list[Container]:
        labels = [f"com.docker.compose.project={self.project}", f"com.docker.compose.service={service}"]
        return self.engine.containers.list(filters={"label": labels}, ignore_removed=True)

    def kill(self, service: str) -> None:
        """SIGKILL, and start again: a kill by hand switches the restart policy off."""
        for container in self.containers(service):
            container.kill()
            container.start()

    def restart(self, service: str) -> None:
        for container in self.containers(service):
            container.restart(timeout=30)

    def scale(self, service: str, count: int) -> None:
        self.bring_up(service, "--scale", f"{service}={count}")

    def bring_up(self, service: str, *options: str, **settings: str) -> None:
        """Have the service as the settings say; those that are given win over the file's."""
        env_file = self.env_file.with_name(f"{self.env_file.name}.changed")
        try:
            env_file.touch(mode=0o600)
            changes = "".join(f"{name}={value}\n" for name, value in settings.items())
            env_file.write_text(f"{self.env_file.read_text()}\n{changes}")
            subprocess.run(
                ["deploy/compose.sh", "up", "--detach", "--no-deps", "--no-build", *options, service],
                cwd=REPOSITORY,
                env={**os.environ, "ENV_FILE": str(env_file)},
                check=True,
                capture_output=True,
                text=True,
            )
        finally:
            env_file.unlink(missing_ok=True)

    @contextmanager
    def another_executor(self, **settings: str) -> Iterator[str]:
        """The id of an executor with settings of its own, beside those that there are."""
        options = [option for name, value in settings.items() for option in ("--env", f"{name}={value}")]
        command = ["deploy/compose.sh", "run", "--detach", "--no-deps", *options, "executor"]
        environment = {**os.environ, "ENV_FILE": str(self.env_file)}
        started = subprocess.run(
            command, cwd=REPOSITORY, env=environment, check=True, capture_output=True, text=True
        )
        container = self.engine.containers.get(started.stdout.split()[-1])
        try:
            yield str(container.id)[:12]
        finally:
            container.remove(force=True)

    def wait_until_ready(self, *, executors: int = 1) -> None:
        wait_until(
            lambda: self._is_ready(executors), what="every part was ready", seconds=READY_SECONDS, every=0.2
        )

    def _is_ready(self, executors: int) -> bool:
        try:
            response = requests.get(f"{self.url}/api/health", timeout=10)
        except requests.RequestException:
            return False
        if response.status_code != 200:
            return False
        body = response.json()
        return body["status"] == "ready" and body["services"]["executors"].get("alive", executors) >= executors

    def run_inside(self, service: str, script: str) -> Any:
        """What a Python script prints as JSON when it runs in that service's container, inside the networks."""
        result = self.containers(service)[0].exec_run(["python3", "-c", script])
        assert result.exit_code == 0, result.output
        return json.loads(result.output)

    def task_container(self, task_id: str) -> Container:
        """The container of a task, which has the task's name."""
        return self.engine.containers.get(task_id)

    def executor_of(self, task_id: str) -> str:
        """Which executor made the container of a task."""
        executor_id: str = self.task_container(task_id).labels["taskrunner.executor"]
        return executor_id

    def has_task_container(self, task_id: str) -> bool:
        found = self.engine.containers.list(
            all=True, filters={"label": f"taskrunner.task={task_id}"}, ignore_removed=True
        )
        return bool(found)

    def control_addresses(self) -> dict[str, str]:
        """Container name → address of each part of the system, on each of its networks."""
        label = f"com.docker.compose.project={self.project}"
        return {
            f"{container.name} on {name}": network["IPAddress"]
            for container in self.engine.containers.list(filters={"label": label}, ignore_removed=True)
            for name, network in container.attrs["NetworkSettings"]["Networks"].items()
            if network["IPAddress"]
        }


def open_stack(engine: docker.DockerClient) -> Stack:
    env_file = Path(os.environ["ENV_FILE"])
    return Stack(env_file, read_settings(env_file.read_text()), engine)
