"""The services' web worker under the real gunicorn, with its real settings."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.polling import wait_until

pytestmark = pytest.mark.component

ROOT = Path(__file__).parents[3]
SECONDS = 20.0


def slow_app(environ, start_response):
    """Says that it was reached, and answers two seconds later; `/` at once."""
    if environ["PATH_INFO"] == "/slow":
        Path(os.environ["REACHED"]).touch()
        time.sleep(2)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number: int = listener.getsockname()[1]
        return number


@pytest.fixture
def process(port: int, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py"]
    process = subprocess.Popen(
        [*command, "libs.common.tests.test_web_worker:slow_app"],
        cwd=ROOT,
        env=os.environ | {"BIND_PORT": str(port), "REACHED": str(tmp_path / "reached")},
    )
    wait_until(lambda: not is_refused(port))
    yield process
    process.kill()
    process.wait()


def is_refused(port: int) -> bool:
    try:
        return not requests.get(f"http://127.0.0.1:{port}/", timeout=5).ok
    except requests.ConnectionError as error:
        return "Connection refused" in str(error)


def test_who_connects_while_the_last_requests_end_is_refused_and_these_are_answered(
    process: subprocess.Popen[bytes], port: int, tmp_path: Path
):
    answers: list[str] = []
    asking = threading.Thread(
        target=lambda: answers.append(requests.get(f"http://127.0.0.1:{port}/slow", timeout=SECONDS).text)
    )
    asking.start()
    wait_until((tmp_path / "reached").exists)

    process.send_signal(signal.SIGTERM)
    wait_until(lambda: is_refused(port))
    was_refused_meanwhile = asking.is_alive()
    asking.join(SECONDS)

    assert was_refused_meanwhile
    assert answers == ["done"]
    assert process.wait(SECONDS) == 0
