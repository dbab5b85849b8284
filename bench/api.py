"""The system under measure, through its gateway, as a user of its own."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import urllib3

TERMINAL = ("completed", "failed", "cancelled")


class Api:
    """A signed-up user's requests. Every answer that isn't the expected one ends the measurement."""

    def __init__(self, base_url: str, *, connections: int = 16) -> None:
        self._base = base_url
        self._pool = urllib3.PoolManager(maxsize=connections, timeout=30, retries=False)
        self._headers: dict[str, str] = {}

    @property
    def base_url(self) -> str:
        return self._base

    @property
    def headers(self) -> dict[str, str]:
        """What says who asks."""
        return self._headers

    def sign_up(self) -> str:
        """Make the requests those of a new user, whose id is returned."""
        name = f"bench-{uuid.uuid4().hex[:12]}"
        body = {
            "name": name,
            "email": f"{name}@example.org",
            "password": "correct horse",
            "passwordConfirm": "correct horse",
        }
        user = self.call("POST", "/api/users/signup", 201, body)
        self._headers = {"Authorization": f"Bearer {user['token']}"}
        return str(user["id"])

    def call(self, method: str, path: str, expected: int, body: Any = None) -> Any:
        answer = self._pool.request(method, self._base + path, headers=self._headers, json=body)
        if answer.status != expected:
            raise SystemExit(f"{method} {path} answered {answer.status}, not {expected}: {answer.data[:500]!r}")
        return answer.json() if answer.data else None

    def create(self, *, due: datetime | None = None, **fields: Any) -> str:
        """Create a task from the benchmark's image; returns its id."""
        body = {"image": "busybox:latest", **fields}
        if due is not None:
            body["scheduledAt"] = due.isoformat()
        task_id: str = self.call("POST", "/api/tasks/", 201, body)["id"]
        return task_id

    def wait(self, task_ids: Iterable[str], *, seconds: float = 300) -> list[dict[str, Any]]:
        """The tasks, all of them completed. The measurement ends when one failed or time ran out."""
        deadline = time.monotonic() + seconds
        return [self._wait_for(task_id, deadline) for task_id in task_ids]

    def _wait_for(self, task_id: str, deadline: float) -> dict[str, Any]:
        while True:
            task: dict[str, Any] = self.call("GET", f"/api/tasks/{task_id}", 200)
            if task["status"] == "completed":
                return task
            if task["status"] in TERMINAL or time.monotonic() > deadline:
                raise SystemExit(f"task {task_id} is {task['status']}: {task['errorMsg']}")
            # Rare enough to leave the machine to what is measured.
            time.sleep(0.2)


def in_seconds(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def timestamp(text: str) -> float:
    """An RFC 3339 time as seconds since the epoch."""
    return datetime.fromisoformat(text).timestamp()
