"""The scheduler's side of the sync, in memory, behind a real HTTP server."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

TOKEN = "service-token"


def task_fields(**changes: Any) -> dict[str, Any]:
    """A TaskSpec as the scheduler sends it; name only what matters."""
    return {
        "taskId": str(uuid4()),
        "runId": str(uuid4()),
        "userId": str(uuid4()),
        "number": 1,
        "image": "busybox",
        "command": "true",
        "args": [],
        "entrypoint": None,
        "environment": {},
        "timeoutSeconds": 60,
        "stopGraceSeconds": 10,
        "cpus": 1.0,
        "memoryMb": 64,
        "pids": 64,
        "network": "none",
        "scheduledAt": None,
        "requestId": "request-1",
    } | changes


# What a finished report may leave out is null.
NOTHING_SAID: dict[str, Any] = dict.fromkeys(
    (
        "reason",
        "exitCode",
        "errorMsg",
        "result",
        "startedAt",
        "finishedAt",
        "imageDigest",
        "maxMemoryMb",
        "cpuSeconds",
        "pulledSeconds",
        "containerId",
    )
)


@dataclass
class Row:
    """What the scheduler knows of one run."""

    task: dict[str, Any]
    status: str = "queued"
    epoch: int = 0
    holder: str | None = None
    stop: bool = False
    finished: dict[str, Any] | None = None
    started: dict[str, Any] | None = None
    finished_reports: int = 0
    chunks: dict[int, dict[str, Any]] = field(default_factory=dict)

    def output(self, stream: str) -> bytes:
        chunks = [self.chunks[seq] for seq in sorted(self.chunks)]
        return b"".join(base64.b64decode(each["data"]) for each in chunks if each["stream"] == stream)

    @property
    def result(self) -> bytes:
        assert self.finished is not None
        return base64.b64decode(self.finished["result"] or "")

    @property
    def live(self) -> bool:
        return self.status in ("claimed", "running")


class FakeScheduler:
    """`answer` is the whole protocol; `away` makes it fail as a scheduler that is down does."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.away = False
        self.draining = False
        self.requests: list[dict[str, Any]] = []
        self.adoptions: list[str] = []
        self.releases: list[tuple[str, int]] = []
        self.prefetch: list[str] = []
        self.boots: dict[str, str] = {}
        self.changed = threading.Condition(threading.RLock())

    def add(self, **changes: Any) -> Row:
        with self.changed:
            row = Row(task_fields(**changes))
            self.rows[row.task["runId"]] = row
            return row

    def wait(self, done: Callable[[], bool], seconds: float = 20.0) -> None:
        with self.changed:
            assert self.changed.wait_for(done, seconds), "the scheduler wasn't told in time"

    def wait_finished(self, row: Row, seconds: float = 20.0) -> dict[str, Any]:
        self.wait(lambda: row.finished is not None, seconds)
        assert row.finished is not None
        return row.finished

    def answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        with self.changed:
            self.requests.append(dict(body))
            self.changed.notify_all()
            executor = body["executor"]
            adopted = self._adopt(executor)
            for each in body.get("logs", ()):
                self.rows[each["runId"]].chunks.setdefault(each["seq"], each)
            reports = [self._report(each) for each in body.get("reports", ())]
            claims = [self._claim(each["runId"], executor) for each in body.get("claims", ())]
            answer = {
                "claims": claims,
                "reports": reports,
                "stop": [
                    {"runId": run_id, "epoch": row.epoch, "reason": "cancelled"}
                    for run_id, row in self.rows.items()
                    if row.live and row.stop and row.holder == executor["id"]
                ],
                "released": self._released(body, executor),
                "adopt": adopted,
                "answers": [
                    {"runId": each["runId"], "live": self._is_live(each["runId"])}
                    for each in body.get("questions", ())
                ],
                "prefetch": self.prefetch,
                "draining": self.draining,
                "leaseSeconds": 30,
                "serverTime": "2026-01-01T00:00:00Z",
            }
            self.changed.notify_all()
            return answer

    def _claim(self, run_id: str, executor: Mapping[str, Any]) -> dict[str, Any]:
        row = self.rows.get(run_id)
        if row is None:
            return {"runId": run_id, "granted": False, "reason": "unknown"}
        if row.live and row.holder == executor["id"] and self.boots[executor["id"]] == executor["bootId"]:
            return {"runId": run_id, "granted": True, "epoch": row.epoch, "task": row.task}
        if row.status != "queued":
            return {"runId": run_id, "granted": False, "reason": "not_queued"}
        if self.draining:
            return {"runId": run_id, "granted": False, "reason": "draining"}
        row.status, row.epoch, row.holder = "claimed", row.epoch + 1, executor["id"]
        return {"runId": run_id, "granted": True, "epoch": row.epoch, "task": row.task}

    def _report(self, report: Mapping[str, Any]) -> dict[str, Any]:
        row = self.rows.get(report["runId"])
        accepted = row is not None and row.live and row.epoch == report["epoch"]
        if accepted and row is not None:
            if report["event"] == "started":
                row.status, row.started = "running", dict(report)
            elif report["event"] == "finished":
                row.status, row.finished = report["outcome"], {**NOTHING_SAID, **report}
        if row is not None and report["event"] == "finished":
            row.finished_reports += 1
        return {key: report[key] for key in ("runId", "epoch", "event")} | {"accepted": accepted}

    def _is_live(self, run_id: str) -> bool:
        row = self.rows.get(run_id)
        return row is not None and (row.live or row.status == "queued")

    def _released(self, body: Mapping[str, Any], executor: Mapping[str, Any]) -> list[dict[str, Any]]:
        released = [
            each
            for each in body.get("held", ())
            if (row := self.rows.get(each["runId"])) is None
            or (row.live and (row.epoch != each["epoch"] or row.holder != executor["id"]))
        ]
        self.releases.extend((each["runId"], each["epoch"]) for each in released)
        return released

    def _adopt(self, executor: Mapping[str, Any]) -> list[dict[str, Any]]:
        """A new boot gets what its former one held; anybody gets what `adoptions` names."""
        former = self.boots.get(executor["id"])
        self.boots[executor["id"]] = executor["bootId"]
        taken = [self.rows[run_id] for run_id in self.adoptions]
        self.adoptions.clear()
        if former not in (None, executor["bootId"]):
            taken += [row for row in self.rows.values() if row.live and row.holder == executor["id"]]
        return [self._adoption(row, executor["id"]) for row in taken]

    def _adoption(self, row: Row, holder: str) -> dict[str, Any]:
        row.epoch, row.holder = row.epoch + 1, holder
        return {
            "runId": row.task["runId"],
            "epoch": row.epoch,
            "wasRunning": row.status == "running",
            "task": row.task,
            "logs": {
                "nextSeq": max(row.chunks, default=-1) + 1,
                "stdoutBytes": len(row.output("stdout")),
                "stderrBytes": len(row.output("stderr")),
            },
        }


def serve(scheduler: FakeScheduler) -> tuple[ThreadingHTTPServer, str]:
    """The scheduler on a port of its own; its server, to be shut down, and its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if scheduler.away:
                self._send(503, {})
            elif self.headers["Authorization"] != f"Bearer {TOKEN}":
                self._send(401, {})
            else:
                self._send(200, scheduler.answer(body))

        def _send(self, status: int, body: Mapping[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"
