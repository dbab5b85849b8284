"""The gateway's stop: what is under way ends, and nobody is waited for who asks for nothing."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest
import requests

from services.gateway.tests.stubs import StubHandler, StubServices, start_gateway
from tests.polling import wait_until

pytestmark = pytest.mark.component

# Far less than gunicorn gives what is under way.
STOP_SECONDS = 10


@pytest.fixture
def own_gateway(services: StubServices, redis_url: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A gateway of this test's own."""
    process, url = start_gateway(services, redis_url)
    yield process, url
    process.kill()
    process.wait()


def test_a_stop_does_not_wait_for_connections_that_are_only_kept_open(own_gateway):
    process, url = own_gateway
    with requests.Session() as session:
        assert session.get(f"{url}/livez").ok

        process.send_signal(signal.SIGTERM)

        assert process.wait(STOP_SECONDS) == 0


def test_a_stop_waits_for_a_request_that_is_under_way(own_gateway, services: StubServices):
    process, url = own_gateway
    answers: list[requests.Response] = []

    def answer_late(handler: StubHandler) -> None:
        time.sleep(2)
        handler.answer(200, {"late": True})

    services.answers["/api/users/login"] = answer_late
    body = {"email": "a@example.org", "password": "x"}
    asking = threading.Thread(target=lambda: answers.append(requests.post(f"{url}/api/users/login", json=body)))
    asking.start()
    wait_until(lambda: services.to("/api/users/login"))

    process.send_signal(signal.SIGTERM)
    asking.join(STOP_SECONDS)

    assert [answer.status_code for answer in answers] == [200]
    assert process.wait(STOP_SECONDS) == 0
