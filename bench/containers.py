"""Containers a second, one run's time and start lateness, each against a bare loop over the docker SDK.

The bare loop creates its containers with the executor's own parameters, on the same network, as many at once as
the executors have slots, and does for each what has to be done: create, start, wait, read the output, remove.
"""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import docker

from bench.api import Api, in_seconds, timestamp

# How long the tasks are created ahead of their common due time, so that creating them isn't measured.
LEAD_SECONDS = 4.0

_CLOCK = re.compile(rb"time\.tv_sec:\s+(\d+)\s+time\.tv_usec:\s+(\d+)")


class BareLoop:
    """Runs containers with given create parameters; one engine client a thread, as the SDK wants it."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._local = threading.local()

    def _client(self) -> Any:  # docker's SDK has no types.
        if not hasattr(self._local, "client"):
            self._local.client = docker.APIClient(version="auto")
        return self._local.client

    def run(self, command: Sequence[str]) -> tuple[float, float, bytes]:
        """One container: when it began to be created, when its exit was seen, and its output."""
        client = self._client()
        began = time.time()
        name = str(uuid.uuid4())
        container = client.create_container_from_config({**self._options, "Cmd": list(command)}, name=name)["Id"]
        client.start(container)
        client.wait(container)
        ended = time.time()
        output = client.logs(container)
        client.remove_container(container)
        return began, ended, output

    def measure_throughput(self, *, count: int, slots: int) -> float:
        with ThreadPoolExecutor(slots) as threads:
            runs = list(threads.map(lambda _: self.run(["true"]), range(count)))
        return count / (max(ended for _, ended, _ in runs) - min(began for began, _, _ in runs))

    def measure_run(self) -> float:
        """Milliseconds from create to exit, of one container alone."""
        began, ended, _ = self.run(["true"])
        return (ended - began) * 1000

    def measure_start(self) -> float:
        """Milliseconds from create to the container's first instruction."""
        began, _, output = self.run(["adjtimex"])
        return (read_clock(output) - began) * 1000


def measure_throughput(api: Api, *, count: int) -> float:
    """Containers a second from the common due time of `count` tasks to the last one's end."""
    due = in_seconds(LEAD_SECONDS)
    with ThreadPoolExecutor(8) as threads:
        task_ids = list(threads.map(lambda _: api.create(due=due, command="true"), range(count)))
    if in_seconds(0) >= due:
        raise SystemExit(f"creating {count} tasks took longer than {LEAD_SECONDS} s; nothing was measured")
    tasks = api.wait(task_ids)
    return count / (max(timestamp(task["finishedAt"]) for task in tasks) - due.timestamp())


def measure_run(api: Api) -> float:
    """Milliseconds from the POST to the container's exit, on an idle system."""
    began = time.time()
    (task,) = api.wait([api.create(command="true")])
    return (timestamp(task["finishedAt"]) - began) * 1000


def measure_lateness(api: Api) -> float:
    """Milliseconds from the due time to the container's first instruction, on an idle system."""
    due = in_seconds(1.5)
    (task,) = api.wait([api.create(due=due, command="adjtimex")])
    return (read_clock(task["result"].encode()) - due.timestamp()) * 1000


def read_clock(output: bytes) -> float:
    """Seconds since the epoch from what `adjtimex` prints: busybox's only clock with microseconds."""
    found = _CLOCK.search(output)
    if found is None:
        raise SystemExit(f"no time in the container's output: {output[:200]!r}")
    return int(found[1]) + int(found[2]) / 1e6
