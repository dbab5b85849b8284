"""How long single requests take, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from bench.api import Api, in_seconds, timestamp

PAGE = 50


def measure_latency(request: Callable[[], object], *, count: int) -> list[float]:
    """Milliseconds of each of `count` requests; the first ones, which warm caches, are left out."""
    samples = []
    for number in range(count + 5):
        began = time.perf_counter()
        request()
        if number >= 5:
            samples.append((time.perf_counter() - began) * 1000)
    return samples


def measure_dispatch(api: Api, *, count: int) -> list[float]:
    """Milliseconds from the due time until the task is queued, on an idle system, by the database's clock."""
    samples = []
    for _ in range(count):
        (task,) = api.wait([api.create(due=in_seconds(1.2), command="true")])
        samples.append((timestamp(task["queuedAt"]) - timestamp(task["scheduledAt"])) * 1000)
    return samples


def list_page(api: Api, query: str = "", *, pages: int = 1) -> Callable[[], object]:
    """Asks for a page of the user's tasks: the first one, or the one after so many others, which are read once."""
    path = f"/api/tasks?limit={PAGE}{query}"
    cursor = ""
    for _ in range(pages - 1):
        cursor = f"&cursor={api.call('GET', path + cursor, 200)['nextCursor']}"
    expected = len(api.call("GET", path + cursor, 200)["items"])

    def ask() -> None:
        found = len(api.call("GET", path + cursor, 200)["items"])
        if found != expected:
            raise SystemExit(f"{path} had {expected} tasks, and now {found}")

    return ask


def create_batches(api: Api, *, size: int) -> Callable[[], Sequence[object]]:
    """Creates a batch of tasks with labels, names and variables, which don't come due while the benchmark runs."""
    due = in_seconds(365 * 86_400).isoformat()
    tasks = [
        {
            "image": "busybox:latest",
            "command": "echo",
            "args": ["hello", str(number)],
            "environment": {"NUMBER": str(number), "MODE": "bench"},
            "labels": {"team": "red", "batch": "7"},
            "name": f"import-{number}",
            "scheduledAt": due,
        }
        for number in range(size)
    ]

    def create() -> Sequence[object]:
        items: Sequence[object] = api.call("POST", "/api/tasks/batch", 201, {"tasks": tasks})["items"]
        return items

    return create
