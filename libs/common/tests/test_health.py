from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

from libs.common.health import Check, read_readiness, serve_health


def up() -> None:
    return None


def down() -> None:
    raise ConnectionError("refused\nwith details")


def test_all_up_is_ready():
    status, body = read_readiness([Check("one", up), Check("two", lambda: {"version": 3})])

    assert (status, body["status"]) == (200, "ready")
    assert body["checks"]["one"]["status"] == "up"
    assert body["checks"]["one"]["latencyMs"] >= 0
    assert body["checks"]["two"]["version"] == 3


def test_a_required_one_down_is_unavailable_and_says_why():
    status, body = read_readiness([Check("one", down), Check("two", up)])

    assert (status, body["status"]) == (503, "unavailable")
    assert body["checks"]["one"]["status"] == "down"
    assert body["checks"]["one"]["error"] == "ConnectionError: refused"


def test_an_optional_one_down_is_degraded():
    status, body = read_readiness([Check("one", down, required=False), Check("two", up)])

    assert (status, body["status"]) == (200, "degraded")


@pytest.mark.component
def test_a_process_without_flask_answers_its_probes():
    alive = True
    server = serve_health(port=0, checks=[Check("one", down)], is_alive=lambda: alive)
    base = f"http://127.0.0.1:{server.server_address[1]}"

    def ask(path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(base + path, timeout=5) as answer:  # noqa: S310  Our own server.
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    try:
        assert ask("/livez") == (200, b'{"status": "alive"}')
        alive = False
        assert ask("/livez")[0] == 503
        status, body = ask("/readyz")
        assert (status, json.loads(body)["status"]) == (503, "unavailable")
        assert ask("/metrics")[0] == 200
        assert ask("/other")[0] == 404
    finally:
        server.shutdown()
        server.server_close()
