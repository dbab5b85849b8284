"""Requests a second through the gateway, with a few clients at once."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from bench.api import Api, in_seconds

CLIENTS = 8
SECONDS = 5.0
ONE_YEAR_SECONDS = timedelta(days=365).total_seconds()


def measure_rate(request: Callable[[], object], *, clients: int = CLIENTS) -> float:
    """Requests a second of `request`, made by so many threads for SECONDS."""
    counter = itertools.count()
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            request()
            next(counter)

    with ThreadPoolExecutor(clients) as threads:
        started = time.perf_counter()
        running = [threads.submit(client) for _ in range(clients)]
        stop.wait(SECONDS)
        stop.set()
        for one in running:
            one.result()
        elapsed = time.perf_counter() - started
    return next(counter) / elapsed


def create_one(api: Api) -> Callable[[], object]:
    """Creates a task that never comes due while the benchmark runs."""
    due = in_seconds(ONE_YEAR_SECONDS)
    return lambda: api.create(due=due, command="true")


def get_one(api: Api) -> Callable[[], object]:
    task_id = api.create(due=in_seconds(ONE_YEAR_SECONDS), command="true")
    return lambda: api.call("GET", f"/api/tasks/{task_id}", 200)


def probe_gateway(api: Api) -> Callable[[], object]:
    """The least that a request can cost here: the gateway answering by itself."""
    return lambda: api.call("GET", "/livez", 200)
