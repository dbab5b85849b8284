"""`/livez`, `/readyz` and `/metrics` for every process: as Flask routes, or on a small server of their own."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from libs.common.metrics import render_metrics

Probe = Callable[[], Mapping[str, Any] | None]


@dataclass(frozen=True, slots=True)
class Check:
    """One dependency. `probe` raises when it is down and may return facts to show beside its state.

    Without a `required` one the service can't work and answers 503; without another it is only degraded.
    """

    name: str
    probe: Probe
    required: bool = True


def read_readiness(checks: Sequence[Check]) -> tuple[int, dict[str, Any]]:
    """The HTTP status and the body of `/readyz`.

    Body: `{"status": "ready"|"degraded"|"unavailable", "checks": {name: {"status": "up"|"down",
    "latencyMs": float, …}}}`.
    """
    results = {check.name: _run(check) for check in checks}
    down = [check for check in checks if results[check.name]["status"] == "down"]
    if any(check.required for check in down):
        return 503, {"status": "unavailable", "checks": results}
    return 200, {"status": "degraded" if down else "ready", "checks": results}


def _run(check: Check) -> dict[str, Any]:
    started = time.monotonic()
    facts: Mapping[str, Any] = {}
    try:
        facts = check.probe() or {}
        status = "up"
    except Exception as error:  # noqa: BLE001  Any failure of a dependency is an answer here.
        status, facts = "down", {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    latency = round((time.monotonic() - started) * 1000, 2)
    return {"status": status, "latencyMs": latency, **facts}


def serve_health(*, port: int, checks: Sequence[Check], is_alive: Callable[[], bool]) -> ThreadingHTTPServer:
    """Serve the three paths from a daemon thread; for processes without Flask. Returns the server, to shut it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/livez":
                alive = is_alive()
                self._answer(200 if alive else 503, {"status": "alive" if alive else "stuck"})
            elif self.path == "/readyz":
                self._answer(*read_readiness(checks))
            elif self.path == "/metrics":
                self._send(200, *render_metrics())
            else:
                self._answer(404, {"status": "unknown path"})

        def _answer(self, status: int, body: Mapping[str, Any]) -> None:
            self._send(status, json.dumps(body).encode(), "application/json")

        def _send(self, status: int, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            # A probe that has seen the status may hang up before it has read the rest.
            with suppress(ConnectionError):
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            """Probes come every few seconds: they stay out of the log."""

    server = ThreadingHTTPServer(("0.0.0.0", port), Handler)  # noqa: S104  Reached only inside the control network.
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server
