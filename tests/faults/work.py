"""The tasks of a storm, the client that creates them through all of it, and what it is told meanwhile."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import requests

from tests.integration.client import TERMINAL, Api, Json, in_seconds, shell

# What a client is to try again; any other answer than these and the good ones is a finding.
RETRY = (502, 503, 504)
PAUSE_SECONDS = 0.5
SUBMITTERS = 8
LONG_SECONDS = 15.0
# Half as many again as the executors of tests/faults/compose.yml have slots.
BURST = 36
WATCH_SECONDS = 3.0
PROBE_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Order:
    """A task to be created `at` seconds after the beginning, due `due_in_seconds` later (0: at once)."""

    number: int
    at: float
    sleep_seconds: float
    due_in_seconds: float
    exit_code: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """A task that was answered 201, and what must come of it."""

    task_id: str
    order: Order
    token: str

    @property
    def status(self) -> str:
        return "completed" if self.order.exit_code == 0 else "failed"

    @property
    def output(self) -> str:
        return f"{self.token}\ndone {self.token}\n"


def plan_orders(
    rng: random.Random, *, count: int, seconds: float, bursts: Sequence[float] = ()
) -> Sequence[Order]:
    """In order of time. Pure. One in ten fails by itself, one in five is due later.

    One in fifteen takes long, so that something runs whatever dies when. `bursts` are times at which so many come
    at once that some have to wait for a slot: BURST, or fewer so that at most half of all come in bursts.
    """
    together = [at for at in bursts for _ in range(min(BURST, count // (2 * len(bursts))))]
    times = sorted([*together, *(rng.uniform(0.0, seconds) for _ in range(count - len(together)))])
    return [
        Order(
            number=number,
            at=at,
            sleep_seconds=_pick_seconds(rng),
            due_in_seconds=round(rng.uniform(2.0, 15.0), 1) if rng.random() < 0.2 else 0.0,
            exit_code=3 if rng.random() < 0.1 else 0,
        )
        for number, at in enumerate(times)
    ]


def _pick_seconds(rng: random.Random) -> float:
    kind = rng.random()
    if kind < 1 / 4:
        return 0.0
    if kind > 14 / 15:
        return LONG_SECONDS
    return round(rng.uniform(0.0, 5.0), 1)


class Client:
    """Calls the gateway and counts what it answers; each thread has a connection of its own."""

    def __init__(self, url: str, token: str | None) -> None:
        self._url = url
        self._token = token
        self._local = threading.local()
        self._lock = threading.Lock()
        self.answers: Counter[str] = Counter()
        self.unexpected: list[str] = []

    def call(self, method: str, path: str, **options: Any) -> requests.Response | None:
        """A good answer, or None when it must be asked again."""
        api = getattr(self._local, "api", None)
        if api is None:
            api = self._local.api = Api(self._url, self._token)
        try:
            response = api.call(method, path, **options)
        except requests.RequestException as error:
            self._note(type(error).__name__)
            # A connection that broke half-way is not used again.
            self._local.api = None
            return None
        self._note(str(response.status_code))
        if response.ok:
            return response
        if response.status_code not in RETRY:
            with self._lock:
                self.unexpected.append(f"{method} {path}: {response.status_code} {response.text[:500]}")
        return None

    def insist(self, method: str, path: str, *, seconds: float = 60.0) -> requests.Response:
        deadline = time.monotonic() + seconds
        while (response := self.call(method, path)) is None:
            assert time.monotonic() < deadline, f"no good answer to {method} {path} within {seconds:g} s"
            time.sleep(PAUSE_SECONDS)
        return response

    def list_tasks(self) -> Mapping[str, Json] | None:
        """All tasks of the user by id; None when a page could not be had."""
        tasks: dict[str, Json] = {}
        cursor = ""
        while True:
            response = self.call("GET", f"/api/tasks/?limit=200{cursor}")
            if response is None:
                return None
            page = response.json()
            tasks |= {task["id"]: task for task in page["items"]}
            if page["nextCursor"] is None:
                return tasks
            cursor = f"&cursor={page['nextCursor']}"

    def _note(self, answer: str) -> None:
        with self._lock:
            self.answers[answer] += 1


class Submitter:
    """Creates the tasks. A try that got no answer may have made one all the same; it is named by its own token."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self.accepted: list[Accepted] = []
        self.given_up: list[Order] = []

    def run(self, orders: Sequence[Order]) -> None:
        """Returns when all have been answered."""
        began = time.monotonic()
        with ThreadPoolExecutor(SUBMITTERS) as pool:
            for order in orders:
                time.sleep(max(0.0, began + order.at - time.monotonic()))
                pool.submit(self._create, order)

    def _create(self, order: Order) -> None:
        deadline = time.monotonic() + 60.0
        for attempt in range(1000):
            token = f"task-{order.number}-{attempt}"
            response = self._client.call("POST", "/api/tasks/", json=_to_body(order, token))
            if response is not None:
                accepted = Accepted(response.json()["id"], order, token)
                with self._lock:
                    self.accepted.append(accepted)
                return
            if time.monotonic() > deadline:
                break
            time.sleep(PAUSE_SECONDS)
        with self._lock:
            self.given_up.append(order)


class Repeating:
    """Does something every so often, in a thread, until it is stopped."""

    def __init__(self, step: Callable[[], None], *, every: float) -> None:
        self._step = step
        self._every = every
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.failures: list[str] = []

    def __enter__(self) -> Repeating:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(60.0)

    def _run(self) -> None:
        while not self._stopping.wait(self._every):
            try:
                self._step()
            except Exception as error:  # noqa: BLE001  The storm goes on; the report says it.
                self.failures.append(repr(error)[:300])


class Watch:
    """Reads all tasks again and again; a terminal one must never change."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._terminal: dict[str, Json] = {}
        self.tasks: Mapping[str, Json] = {}
        self.changed: list[tuple[Json, Json]] = []
        self.rounds = 0

    def look(self) -> None:
        tasks = self._client.list_tasks()
        if tasks is None:
            return
        self.rounds += 1
        self.tasks = tasks
        for task_id, before in self._terminal.items():
            if tasks.get(task_id) != before:
                self.changed.append((before, tasks.get(task_id, {})))
        self._terminal |= {task_id: task for task_id, task in tasks.items() if task["status"] in TERMINAL}

    @property
    def open_tasks(self) -> Sequence[Json]:
        return [task for task in self.tasks.values() if task["status"] not in TERMINAL]


class Probe:
    """Asks for something small all the time: when the system was there for its users, and when not."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.good: list[datetime] = []

    def look(self) -> None:
        if self._client.call("GET", "/api/tasks/?limit=1") is not None:
            self.good.append(datetime.now(UTC))


def _to_body(order: Order, token: str) -> Json:
    script = f"echo {token}; sleep {order.sleep_seconds}; echo done {token}; exit {order.exit_code}"
    fields = {"name": token} | ({"scheduledAt": in_seconds(order.due_in_seconds)} if order.due_in_seconds else {})
    return shell(script, **fields)
