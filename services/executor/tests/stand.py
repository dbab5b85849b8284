"""The whole executor process between a real broker and a real engine, and the scheduler's protocol in memory."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Sequence
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import docker
import pika

from libs.common.messages import RunMessage
from libs.common.topology import DEAD_QUEUE, DEFAULT_POOL, RUNS_QUEUE, declare_topology, run_queue
from services.executor import runtime as rt
from services.executor.tests.fake_scheduler import TOKEN, FakeScheduler, Row, serve
from tests.polling import wait_until

ROOT = Path(__file__).parents[3]
START_SECONDS = 30.0
INSTANCE = f"process-{uuid.uuid4().hex[:8]}"


class Stand:
    """A broker, a scheduler, and executors that come and go."""

    def __init__(self, broker_url: str, engine: docker.DockerClient) -> None:
        self.scheduler = FakeScheduler()
        self.engine = engine
        self.instance = INSTANCE
        self._broker_url = broker_url
        self._server: ThreadingHTTPServer
        self._server, self._url = serve(self.scheduler)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connection = pika.BlockingConnection(pika.URLParameters(broker_url))
        self.channel: Any = self._connection.channel()
        declare_topology(self.channel)
        self.channel.queue_purge(RUNS_QUEUE)
        self.channel.queue_purge(DEAD_QUEUE)

    def start(
        self, executor_id: str = "executor-1", *, within: Sequence[str] = (), **changes: str
    ) -> tuple[subprocess.Popen[bytes], int]:
        """A running executor that has synced, and the port of its health. `within` is a command that runs it."""
        port = _free_port()
        environment = os.environ | {
            "BROKER_URL": self._broker_url,
            "SCHEDULER_URL": self._url,
            "INTERNAL_TOKEN": TOKEN,
            "INSTANCE": self.instance,
            "EXECUTOR_ID": executor_id,
            "EXECUTOR_SLOTS": "3",
            "EXECUTOR_STOP_GRACE_SECONDS": "0.5",
            "HEALTH_PORT": str(port),
        }
        process = subprocess.Popen(
            [*within, sys.executable, "-m", "services.executor"], cwd=ROOT, env=environment | changes
        )
        self._processes.append(process)
        wait_until(lambda: read_status(port, "/readyz") == 200, START_SECONDS, "being ready")
        return process, port

    def add(self, *argv: str, pool: str = DEFAULT_POOL, **changes: Any) -> Row:
        """A run that waits on its pool's queue."""
        row = self.scheduler.add(command=argv[0], args=list(argv[1:]), **changes)
        self.publish(row, pool)
        return row

    def publish(self, row: Row, pool: str = DEFAULT_POOL) -> None:
        message = RunMessage(run_id=uuid.UUID(row.task["runId"]), task_id=uuid.UUID(row.task["taskId"]))
        self.publish_body(message.encode(), run_queue(pool))

    def publish_body(self, body: bytes, queue: str = RUNS_QUEUE) -> None:
        self.channel.basic_publish("", queue, body, pika.BasicProperties(delivery_mode=2))

    def count(self, queue: str) -> int:
        """Messages that wait in it."""
        count: int = self.channel.queue_declare(queue, passive=True).method.message_count
        return count

    def containers(self) -> list[Any]:
        labels = [f"{rt.LABEL_INSTANCE}={self.instance}", rt.LABEL_RUN]
        found: list[Any] = self.engine.containers.list(all=True, filters={"label": labels}, ignore_removed=True)
        return found

    def wait_started(self, *rows: Row) -> None:
        self.scheduler.wait(lambda: all(row.started for row in rows))

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for container in self.containers():
            # A removal that the executor had asked for may be under way.
            with contextlib.suppress(docker.errors.NotFound, docker.errors.APIError):
                container.remove(force=True)
        wait_until(lambda: self.containers() == [], what="removing the containers")
        self._server.shutdown()
        self._connection.close()


def read_status(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def read(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        text: str = answer.read().decode()
        return text


def read_metric(port: int, name: str) -> float:
    """The value of `taskrunner_executor_NAME`."""
    text = read(port, "/metrics")
    return next(
        float(line.split()[1]) for line in text.splitlines() if line.startswith(f"taskrunner_executor_{name} ")
    )


def ends(row: Row) -> tuple[str, str | None, int | None]:
    assert row.finished is not None
    return row.finished["outcome"], row.finished["reason"], row.finished["exitCode"]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
