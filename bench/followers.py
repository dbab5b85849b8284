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

    def join(self) -> None:
        self._thread.join(120)

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


def measure_run(api: Api, script: str, *, followers: int) -> tuple[float, float]:
    """Seconds that the run took, and those from its end to the last follower's. Ends when a byte is missing."""
    due_task = api.create(command="sh", args=["-c", f"sleep 2; {script}"], network="none")
    followed = [Follower(api, due_task) for _ in range(followers)]
    for follower in followed:
        follower.opened.wait(30)
    (task,) = api.wait([due_task])
    for follower in followed:
        follower.join()
        if not (follower.printed == CAP_BYTES and follower.has_mark and follower.has_ended):
            raise SystemExit(f"a follower got {follower.printed} bytes of {CAP_BYTES}, end: {follower.has_ended}")
    took = timestamp(task["finishedAt"]) - timestamp(task["startedAt"]) - 2
    last = max((follower.ended_at for follower in followed), default=time.time())
    return took, last - timestamp(task["finishedAt"])
