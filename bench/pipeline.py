"""The whole pipeline with tasks that do nothing, against Celery's on the same broker, cache and machine.

    python -m bench.pipeline      the settings file of a running system is named by ENV_FILE; its LOG_LEVEL should
                                  be warning, since Celery's workers log no task either
    CELERY_PYTHON                 the interpreter that has Celery, that of .venv-bench unless given
    BENCH_TASKS, BENCH_ROUNDS     how many tasks a round, and how many rounds, 10,000 and 3 unless given

A round is the time from the first request to the last task's end, by the wall clock. Both sides are measured in
turn, and who is first changes with each round. What each does for a task is said at the end of the output.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.api import Api
from bench.backlog import POOL, Database, find_address, noop_executor
from bench.report import Row, print_table, say
from deploy.environment import gateway_url, read_settings

REPOSITORY = Path(__file__).parents[1]
CELERY_PYTHON = REPOSITORY / ".venv-bench" / "bin" / "python"
EXECUTORS = 2
SLOTS = 200
BATCH = 1000
# As many as are needed to keep the gateway busy.
CLIENTS = 3
POLL_SECONDS = 0.05
LONGEST_SECONDS = 600.0
# Celery's processes are tried with a round each; the best one is what counts. Ours have a round before, too.
CELERY_PROCESSES = (2, 4)
STOP_SECONDS = 30.0

WHAT_IS_COMPARED = """
both     {count} tasks a round, from the first request to the last end; no side logs single tasks.
ours     POST /api/tasks/batch through the gateway: token verified, fields validated, rows in PostgreSQL, fsynced
         before the 201. Dispatch by priority, fair share and quota; a quorum queue with confirmed publishes; a
         claim with a lease; a report; state, times, receipt and exit code in PostgreSQL, fsynced. Any part may be
         killed. {executors} executors of {slots} slots with the no-op runtime. No part has more than a core.
Celery   Messages straight to the broker from 8 threads: no API, no user, no validation, no state before the end. A
         quorum queue, too, with confirmed publishes; acks late; the result in Redis, which is not on a disk, and
         nobody subscribes to it. Prefork workers, on the host and with no limit of cores, default prefetch, no
         gossip, mingle, heartbeats, events or remote control.
"""


@dataclass(frozen=True, slots=True)
class Celery:
    """Where its interpreter is, and what it needs to find the system's broker and cache."""

    python: Path
    environment: Mapping[str, str]

    @contextmanager
    def workers(self, processes: int) -> Iterator[None]:
        options = ["--pool=prefork", f"--concurrency={processes}", "--loglevel=error"]
        options += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        command = [self.python, "-m", "celery", "--quiet", "--app=bench.celery_app", "worker", *options]
        # A group of its own, so that its processes end with it.
        worker = subprocess.Popen(
            command, cwd=REPOSITORY, env=self.environment, start_new_session=True, stdout=subprocess.DEVNULL
        )
        try:
            yield
        finally:
            worker.terminate()
            try:
                worker.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait()

    def measure(self, count: int, *, processes: int) -> float:
        """Tasks a second from the first publish to the last result."""
        with self.workers(processes):
            command = [self.python, "-m", "bench.celery_app", str(count)]
            done = subprocess.run(
                command, cwd=REPOSITORY, env=self.environment, check=True, stdout=subprocess.PIPE, text=True
            )
        seconds, sending = map(float, done.stdout.split())
        say(f"  Celery, {processes} processes: {count / seconds:.0f}/s; sent at {count / sending:.0f}/s")
        return count / seconds


def find_celery(settings: Mapping[str, str]) -> Celery:
    broker, cache = (find_address(settings, service) for service in ("rabbitmq", "redis"))
    addresses = {
        "CELERY_BROKER": f"amqp://taskrunner:{settings['RABBITMQ_PASSWORD']}@{broker}:5672//",
        "CELERY_RESULTS": f"redis://:{settings['REDIS_PASSWORD']}@{cache}:6379/1",
    }
    # It warns of root, which these workers may be.
    environment = {**os.environ, **addresses, "PYTHONWARNINGS": "ignore"}
    return Celery(python=Path(os.environ.get("CELERY_PYTHON") or CELERY_PYTHON), environment=environment)


def measure_pipeline(api: Api, database: Database, count: int) -> float:
    """Tasks a second from the first request to the last task's end."""
    user_id = uuid.UUID(api.sign_up())
    began = time.monotonic()
    create_tasks(api, count)
    created = time.monotonic()
    database.wait_until_done(user_id, seconds=LONGEST_SECONDS, poll_seconds=POLL_SECONDS)
    seconds = time.monotonic() - began
    say(f"  ours: {count / seconds:.0f}/s; created at {count / (created - began):.0f}/s")
    return count / seconds


def create_tasks(api: Api, count: int) -> None:
    task = {"image": "busybox:latest", "command": "true", "pool": POOL}

    def create(size: int) -> None:
        api.call("POST", "/api/tasks/batch", 201, {"tasks": [task] * size})

    sizes = [BATCH] * (count // BATCH) + [count % BATCH] * bool(count % BATCH)
    with ThreadPoolExecutor(CLIENTS) as threads:
        for future in [threads.submit(create, size) for size in sizes]:
            future.result()


def alternate(
    rounds: int, ours: Callable[[], float], theirs: Callable[[], float]
) -> tuple[list[float], list[float]]:
    """Samples of both; who is first changes with each round."""
    samples: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        say(f"the pipeline and Celery's, {number + 1}/{rounds}")
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            samples[side].append((ours, theirs)[side]())
    return samples


def compare(env_file: Path, *, count: int, rounds: int) -> Row:
    """Both in this one run."""
    settings = dict(read_settings(env_file.read_text(encoding="utf-8")))
    api, database, celery = Api(gateway_url(settings)), Database(settings), find_celery(settings)
    with ExitStack() as executors:
        for _ in range(EXECUTORS):
            executors.enter_context(noop_executor(env_file, slots=SLOTS))
        say("a round of ours to warm up")
        measure_pipeline(api, database, count)
        say("how many processes serve Celery best")
        processes = max(CELERY_PROCESSES, key=lambda number: celery.measure(count, processes=number))
        ours, theirs = alternate(
            rounds,
            lambda: measure_pipeline(api, database, count),
            lambda: celery.measure(count, processes=processes),
        )
    return Row("whole pipeline, no-op tasks", "/s", ours, f"Celery, {processes} processes", theirs)


def run() -> None:
    count, rounds = (
        int(os.environ.get(name) or default) for name, default in (("BENCH_TASKS", 10_000), ("BENCH_ROUNDS", 3))
    )
    row = compare(Path(os.environ["ENV_FILE"]), count=count, rounds=rounds)
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    print(f"\n{os.cpu_count()} cores, load {load} at the end\n")
    print_table([row])
    print(WHAT_IS_COMPARED.format(count=count, executors=EXECUTORS, slots=SLOTS))


if __name__ == "__main__":
    run()
