"""Both processes as they are started: wired from a config, over real servers."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest
import requests

from libs.common.config import Secret
from libs.common.shutdown import Shutdown
from services.scheduler.__main__ import run
from services.scheduler.config import LoopsConfig

pytestmark = pytest.mark.component


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_for(condition, *, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def is_ready(port):
    try:
        return requests.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200
    except requests.ConnectionError:
        return False


def test_the_loops_start_dispatch_and_stop_in_order(
    database, user, executor, fresh_redis_url, broker_url, free_port
):
    config = LoopsConfig(
        environment="development",
        log_level="info",
        database_url=Secret(database.dsn),
        redis_url=Secret(fresh_redis_url),
        broker_url=Secret(broker_url),
        users_url="http://127.0.0.1:1",
        internal_token=Secret("unused"),
        quota_running=None,
        executor_lost=timedelta(seconds=300),
        retention={},
        health_port=free_port,
    )
    shutdown = Shutdown()
    process = threading.Thread(target=run, args=(config, shutdown))
    process.start()
    try:
        wait_for(lambda: is_ready(free_port))
        task = user.create()

        wait_for(lambda: user.get(task["id"])["status"] == "queued")

        checks = requests.get(f"http://127.0.0.1:{free_port}/readyz", timeout=5).json()["checks"]
        assert {name: check["status"] for name, check in checks.items()} == dict.fromkeys(
            ("postgres", "broker", "redis", "dispatch", "sweep", "retention"), "up"
        )
        assert requests.get(f"http://127.0.0.1:{free_port}/livez", timeout=5).status_code == 200
        metrics = requests.get(f"http://127.0.0.1:{free_port}/metrics", timeout=5).text
        assert "taskrunner_dispatched_total" in metrics
        assert re.search(r"^taskrunner_dead_letters \d", metrics, re.MULTILINE), "the broker was asked"
    finally:
        shutdown.ask()
        process.join(20)
    assert not process.is_alive()


_ASK = """
import sys
from services.scheduler.app import create_app
client = create_app().test_client()
sys.stderr.write(client.get("/readyz").text + "\\n" + str(client.get("/api/tasks/").status_code))
"""


def test_the_http_process_is_made_from_the_environment(database, redis_url):
    environment = {
        "DATABASE_URL": database.dsn,
        "REDIS_URL": redis_url,
        "USERS_URL": "http://127.0.0.1:1",
        "INTERNAL_TOKEN": "hush-4711",
    }

    done = subprocess.run(
        [sys.executable, "-c", _ASK], env=environment, check=True, capture_output=True, text=True, timeout=60
    )

    readiness, status = done.stderr.splitlines()
    body = json.loads(readiness)
    assert body["status"] == "degraded", "no executor is connected, and no loop is at work"
    assert body["checks"]["postgres"]["status"] == "up"
    assert status == "401"
    assert "Secret(***)" in done.stdout
    assert "hush-4711" not in done.stdout
