"""What following a run's output costs that run, and whether every follower gets every byte.

The run prints ten megabytes, which is past the cap on what is kept; a follower is a bare socket that counts.
"""

from __future__ import annotations

import socket
import threading
import time
from urllib.parse import urlsplit

from bench.api import Api, timestamp

FOLLOWERS = 100
# Opening a hundred streams is work too, and none that is measured here.
LEAD_SECONDS = 6
# Nothing else in a stream has this character, so that counting it counts what was printed.
PRINTED = "~"
PRINTED_BYTES = 10 * 1024 * 1024
# The default of LOG_MAX_KB.
CAP_BYTES = 5 * 1024 * 1024
MARK = b"output truncated"

_BLOCKS = 40
# At full speed: what the machine can do.
FAST = f"head -c {PRINTED_BYTES} /dev/zero | tr '\\0' '{PRINTED}'"
# Over some four seconds, so that all followers are at work while it prints.
_BLOCK = f"head -c {PRINTED_BYTES // _BLOCKS} /dev/zero | tr '\\0' '{PRINTED}'"
STEADY = f"i=0; while [ $i -lt {_BLOCKS} ]; do {_BLOCK}; sleep 0.1; i=$((i+1)); done"

_ENDED = b"event: end\n"


class Follower:
    """Reads one stream in a thread of its own, and counts."""

    def __init__(self, api: Api, task_id: str) -> None:
        self._api = api
        self._path = f"/api/tasks/{task_id}/logs"
        self.printed = 0
        self.has_mark = False
        self.has_ended = False
        self.ended_at = 0.0
        self.opened = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Wait for the stream's end; leave when something is missing."""
        self._thread.join(120)
        if not (self.printed == CAP_BYTES and self.has_mark and self.has_ended):
            raise SystemExit(f"a follower got {self.printed} of {CAP_BYTES} bytes; end: {self.has_ended}")

    def _run(self) -> None:
        parts = urlsplit(self._api.base_url)
        with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
            head = [f"GET {self._path} HTTP/1.1", f"Host: {parts.netloc}", "Accept: text/event-stream"]
            head += [f"Authorization: {self._api.headers['Authorization']}", "Connection: close", "", ""]
            connection.sendall("\r\n".join(head).encode())
            tail = b""
            while data := connection.recv(1 << 18):
                self.opened.set()
                self.printed += data.count(PRINTED.encode())
                if self.printed >= CAP_BYTES:
                    tail += data
        self.has_mark, self.has_ended = MARK in tail, _ENDED in tail
        self.ended_at = time.time()


class Following:
    """Measures runs with and without followers. `delays`: seconds from each run's end to its last follower's."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.delays: list[float] = []

    def measure_run(self, script: str, *, followers: int) -> float:
        """Seconds that the run took. The measurement ends when a follower lacks a byte."""
        # All are there before the first byte is.
        task_id = self._api.create(command="sh", args=["-c", f"sleep {LEAD_SECONDS}; {script}"], network="none")
        followed = [Follower(self._api, task_id) for _ in range(followers)]
        for follower in followed:
            follower.opened.wait(30)
        (task,) = self._api.wait([task_id])
        for follower in followed:
            follower.check()
        if followed:
            ended_at = max(follower.ended_at for follower in followed)
            self.delays.append(ended_at - timestamp(task["finishedAt"]))
        return timestamp(task["finishedAt"]) - timestamp(task["startedAt"]) - LEAD_SECONDS
