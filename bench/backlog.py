"""What a backlog costs: how fast it is worked off, how busy the slots are meanwhile, how late tasks start.

`python -m bench.backlog` measures a running system whose settings file ENV_FILE names. Tasks are written into the
database directly, as the API would have, so that creating them takes nothing away from what is measured. Those for
the no-op runtime go to a pool of their own, served by an executor that is started for it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import docker
import psycopg

from bench.api import Api
from deploy.environment import gateway_url, read_settings

POOL = "bench"
NOOP_SLOTS = 8
BURST_TASKS = 10_000
STEADY_SECONDS = 15.0
# So many wait at any time while the steady rate is measured: enough for all slots, and no backlog.
STEADY_TASKS = 100
BUSY_SECONDS = 20
LATENESS_TASKS = 40

_ADD = """
INSERT INTO scheduler.tasks (
    id, user_id, image, command, args, timeout_seconds, stop_grace_seconds, cpus, memory_mb, pids, network,
    scheduled_at, due_at, request_id, pool)
SELECT gen_random_uuid(), %(user_id)s, 'busybox:latest', %(command)s, %(args)s, 60, 1, 0.1, 16, 16, 'none',
       now() + %(ahead)s * interval '1 second', now() + %(ahead)s * interval '1 second', 'bench', %(pool)s
  FROM generate_series(1, %(count)s)
"""
_OPEN = "SELECT count(*) FROM scheduler.tasks WHERE user_id = %s AND status IN ('pending', 'queued', 'running')"
# Found at once as long as there is one, so that looking often costs next to nothing.
_HAS_OPEN = f"SELECT EXISTS ({_OPEN.replace('count(*) ', '')})"
_ENDED = """
SELECT count(*), max(finished_at) - min(due_at) FROM scheduler.tasks WHERE user_id = %s AND status = 'completed'
"""
_CLAIMS = """
SELECT r.id::text, r.claimed_at
  FROM scheduler.runs r JOIN scheduler.tasks t ON t.id = r.task_id
 WHERE t.user_id = %s
"""
_LATENESS = """
SELECT extract(epoch FROM r.started_at - t.due_at) * 1000
  FROM scheduler.runs r JOIN scheduler.tasks t ON t.id = r.task_id
 WHERE t.user_id = %s
"""


def find_address(settings: Mapping[str, str], service: str) -> str:
    """Of a server of the composed system, on its own network, which the host alone reaches besides."""
    labels = [
        f"com.docker.compose.project={settings['COMPOSE_PROJECT_NAME']}",
        f"com.docker.compose.service={service}",
    ]
    (container,) = docker.from_env().containers.list(filters={"label": labels})
    (network,) = container.attrs["NetworkSettings"]["Networks"].values()
    return str(network["IPAddress"])


class Database:
    """The composed system's own, as its owner; it is reachable from its host alone."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._connection = psycopg.connect(
            host=find_address(settings, "postgres"),
            user="taskrunner",
            password=settings["POSTGRES_PASSWORD"],
            dbname="taskrunner",
            autocommit=True,
        )

    def read(self, query: str, *parameters: Any) -> Any:
        """The only row, or its only value."""
        row = self._connection.execute(query.encode(), parameters).fetchone()
        return row[0] if row is not None and len(row) == 1 else row

    def list(self, query: str, *parameters: Any) -> list[float]:
        return [float(row[0]) for row in self._connection.execute(query.encode(), parameters)]

    def read_claims(self, user_id: uuid.UUID) -> dict[str, datetime]:
        """When each run of the user's tasks was claimed."""
        return dict(self._connection.execute(_CLAIMS.encode(), (user_id,)).fetchall())

    def add_tasks(
        self,
        user_id: uuid.UUID,
        count: int,
        *,
        ahead: float = 0.0,
        pool: str = POOL,
        command: str = "true",
        args: tuple[str, ...] = (),
    ) -> None:
        parameters = {"user_id": user_id, "count": count, "ahead": ahead, "pool": pool}
        self._connection.execute(_ADD, parameters | {"command": command, "args": list(args)})

    def wait_until_done(self, user_id: uuid.UUID, *, seconds: float, poll_seconds: float = 0.25) -> None:
        deadline = time.monotonic() + seconds
        while self.read(_HAS_OPEN, user_id):
            if time.monotonic() > deadline:
                raise SystemExit(f"not done within {seconds:g} s: {self.read(_OPEN, user_id)} tasks are open")
            time.sleep(poll_seconds)


@contextmanager
def noop_executor(env_file: Path, *, slots: int = NOOP_SLOTS) -> Iterator[None]:
    """An executor that runs nothing, in the pool of the benchmark."""
    options = {"EXECUTOR_RUNTIME": "noop", "EXECUTOR_POOLS": POOL, "EXECUTOR_SLOTS": str(slots)}
    arguments = [word for name, value in options.items() for word in ("--env", f"{name}={value}")]
    command = ["deploy/compose.sh", "run", "--detach", "--no-deps", *arguments, "executor"]
    environment = {**os.environ, "ENV_FILE": str(env_file)}
    started = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    container = docker.from_env().containers.get(started.stdout.split()[-1])
    try:
        yield
    finally:
        container.remove(force=True)


def measure_steady_rate(database: Database) -> float:
    """Tasks a second with the no-op runtime while as many come as go."""
    user_id = uuid.uuid4()
    database.add_tasks(user_id, STEADY_TASKS)
    time.sleep(2)
    began, before = time.monotonic(), database.read(_ENDED, user_id)[0]
    while time.monotonic() - began < STEADY_SECONDS:
        missing = STEADY_TASKS - database.read(_OPEN, user_id)
        if missing > 0:
            database.add_tasks(user_id, missing)
        time.sleep(0.02)
    rate = (database.read(_ENDED, user_id)[0] - before) / (time.monotonic() - began)
    database.wait_until_done(user_id, seconds=60)
    return float(rate)


def measure_burst_rate(database: Database) -> float:
    """Tasks a second with the no-op runtime from the common due time of all to the last one's end."""
    user_id = uuid.uuid4()
    database.add_tasks(user_id, BURST_TASKS, ahead=3)
    database.wait_until_done(user_id, seconds=600)
    count, elapsed = database.read(_ENDED, user_id)
    return float(count / elapsed.total_seconds())


def measure_busy_slots(database: Database, project: str, *, slots: int) -> float:
    """The part of the slots' time in which they had a run, while a backlog of containers of 1 s lasted.

    From the claim until the executor has seen the container's end, which frees the slot.
    """
    user_id = uuid.uuid4()
    began = int(time.time())
    database.add_tasks(user_id, slots * BUSY_SECONDS, ahead=1, pool="default", command="sleep", args=("1",))
    database.wait_until_done(user_id, seconds=300)
    claims = database.read_claims(user_id)
    ends = read_ends(project, since=began)
    first, last = min(claims.values()), max(claims.values())
    busy = sum((min(ends[run_id], last) - claim for run_id, claim in claims.items()), timedelta(0))
    return busy / (last - first) / slots


def read_ends(project: str, *, since: int) -> dict[str, datetime]:
    """When its executor saw the end of each run, by its log."""
    label = [f"com.docker.compose.project={project}", "com.docker.compose.service=executor"]
    lines = [
        line
        for container in docker.from_env().containers.list(filters={"label": label})
        for line in container.logs(since=since).splitlines()
        if b'"run_finished"' in line
    ]
    entries = map(json.loads, lines)
    return {entry["run_id"]: datetime.fromisoformat(entry["at"]) for entry in entries}


def measure_lateness(database: Database) -> float:
    """Milliseconds from the due time to the start, the median of tasks that are due one after the other."""
    user_id = uuid.uuid4()
    for number in range(LATENESS_TASKS):
        database.add_tasks(user_id, 1, ahead=2 + number * 0.25)
    database.wait_until_done(user_id, seconds=60)
    return statistics.median(database.list(_LATENESS, user_id))


def run() -> None:
    env_file = Path(os.environ["ENV_FILE"])
    settings = read_settings(env_file.read_text(encoding="utf-8"))
    database = Database(dict(settings))
    health = Api(gateway_url(settings)).call("GET", "/api/health", 200)
    slots = int(health["services"]["executors"]["slots"])
    with noop_executor(env_file):
        time.sleep(3)
        for _ in range(3):
            steady, burst = measure_steady_rate(database), measure_burst_rate(database)
            ratio = burst / steady
            print(f"no-op tasks: steady {steady:.0f}/s, {BURST_TASKS} due at once {burst:.0f}/s ({ratio:.2f})")
        print(f"lateness {measure_lateness(database):.1f} ms")
    busy = measure_busy_slots(database, settings["COMPOSE_PROJECT_NAME"], slots=slots)
    print(f"busy slots with containers of 1 s: {busy:.3f}")


if __name__ == "__main__":
    sys.exit(run())
