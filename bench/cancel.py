"""How long a cancel takes to become a SIGTERM in its container, with Redis and without.

python -m bench.cancel        the settings file of a running system is named by ENV_FILE; its Redis is stopped
                              and started again
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker

from bench.api import Api
from deploy.environment import gateway_url, read_settings

RUNS = 20
# The task must run for longer than any sync that its start brings about.
SETTLE_SECONDS = 1.0
SYNC_SECONDS = 1.0
EVENT_SECONDS = 30.0
READY_SECONDS = 60.0


class Signals:
    """When the engine sent each container its first SIGTERM, by its events, in seconds since the epoch."""

    def __init__(self, engine: Any) -> None:
        self._seen: dict[str, float] = {}
        self._changed = threading.Condition()
        self._events = engine.events(decode=True, filters={"event": "kill"})
        threading.Thread(target=self._read, daemon=True).start()

    def wait(self, name: str) -> float:
        with self._changed:
            if not self._changed.wait_for(lambda: name in self._seen, EVENT_SECONDS):
                raise SystemExit(f"no SIGTERM reached {name} within {EVENT_SECONDS:g} s")
            return self._seen[name]

    def _read(self) -> None:
        for event in self._events:
            attributes = event["Actor"]["Attributes"]
            if attributes.get("signal") == "15":
                with self._changed:
                    self._seen.setdefault(attributes["name"], event["timeNano"] / 1e9)
                    self._changed.notify_all()


def measure_cancel(api: Api, signals: Signals) -> float:
    """Milliseconds from the POST to the SIGTERM, at a random moment between two syncs."""
    task_id = api.create(command="sleep", args=["600"], network="none")
    wait_for_status(api, task_id, "running")
    time.sleep(SETTLE_SECONDS + random.uniform(0, SYNC_SECONDS))
    began = time.time()
    api.call("POST", f"/api/tasks/{task_id}/cancel", 202)
    taken = (signals.wait(task_id) - began) * 1000
    wait_for_status(api, task_id, "cancelled")
    return taken


def wait_for_status(api: Api, task_id: str, status: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while api.call("GET", f"/api/tasks/{task_id}", 200)["status"] != status:
        if time.monotonic() > deadline:
            raise SystemExit(f"task {task_id} didn't become {status}")
        time.sleep(0.1)


@contextmanager
def without_redis(engine: Any, project: str) -> Iterator[None]:
    labels = [f"com.docker.compose.project={project}", "com.docker.compose.service=redis"]
    (container,) = engine.containers.list(filters={"label": labels})
    container.stop()
    try:
        yield
    finally:
        container.start()


def print_line(name: str, samples: Sequence[float]) -> None:
    print(
        f"cancel to SIGTERM, {name}: median {statistics.median(samples):.0f} ms, "
        f"max {max(samples):.0f} ms of {len(samples)}",
        flush=True,
    )


def run() -> None:
    settings = read_settings(Path(os.environ["ENV_FILE"]).read_text(encoding="utf-8"))
    engine = docker.from_env()
    api = Api(gateway_url(settings))
    api.sign_up()
    signals = Signals(engine)
    print(f"measuring {2 * RUNS} cancels…", file=sys.stderr, flush=True)
    print_line("Redis up", [measure_cancel(api, signals) for _ in range(RUNS)])
    with without_redis(engine, settings["COMPOSE_PROJECT_NAME"]):
        print_line("Redis down", [measure_cancel(api, signals) for _ in range(RUNS)])


if __name__ == "__main__":
    run()
