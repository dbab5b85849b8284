"""Everything at once: users, executors, dispatchers and sweeps over one database."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from services.scheduler.dispatch import DispatchConfig, Dispatcher
from services.scheduler.sweep import SweepConfig, Sweeper
from services.scheduler.tests.executors import FakeExecutor

pytestmark = pytest.mark.component

SECONDS = 4.0


class Chaos:
    """Threads that act until the time is up; what goes wrong in one is kept."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self._until = time.monotonic() + SECONDS
        self._threads: list[threading.Thread] = []

    def start(self, act) -> None:
        def run():
            while time.monotonic() < self._until and not self.failures:
                try:
                    act()
                except Exception as error:  # noqa: BLE001  Whatever it is, the test shows it.
                    self.failures.append(f"{act}: {error!r}")

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)


def expect(answer, *statuses):
    assert answer.status_code in statuses, (answer.status_code, answer.json)


@dataclass
class World:
    """What the acts share."""

    chance: random.Random
    user: Any
    pool: Any
    sent: list[str]

    def create(self) -> None:
        self.user.create(priority=self.chance.randrange(10))

    def disturb(self) -> None:
        answer = self.user("GET", "/api/tasks/", query_string={"status": "pending,queued,running"})
        tasks = answer.json["items"]
        for task in self.chance.sample(tasks, min(3, len(tasks))):
            if self.chance.random() < 0.5:
                expect(self.user("DELETE", f"/api/tasks/{task['id']}"), 204, 404)
            else:
                expect(self.user("POST", f"/api/tasks/{task['id']}/cancel"), 200, 202, 404)

    def expire(self) -> None:
        with self.pool.connection() as connection:
            connection.execute(
                "UPDATE scheduler.leases SET expires_at = now() - interval '1 s' WHERE run_id IN"
                " (SELECT run_id FROM scheduler.leases ORDER BY run_id LIMIT 2 FOR UPDATE SKIP LOCKED)"
            )
        time.sleep(0.05)

    def work(self, executor: FakeExecutor) -> None:
        wanted = [run_id for run_id in self.sent[-30:] if run_id not in executor.held]
        claims = [{"runId": run_id} for run_id in self.chance.sample(wanted, min(8, len(wanted)))]
        answer = executor.sync(claims=claims, reports=self._report(executor), logs=self._print(executor))
        for entry in [*answer["released"], *(r for r in answer["reports"] if r["event"] == "finished")]:
            executor.held.pop(entry["runId"], None)
        for entry in [*answer["adopt"], *(c for c in answer["claims"] if c["granted"])]:
            executor.held[entry["runId"]] = entry["epoch"]
        if self.chance.random() < 0.05:
            executor.reboot()

    def _report(self, executor: FakeExecutor) -> list[dict[str, Any]]:
        reports: list[dict[str, Any]] = []
        for run_id, epoch in executor.held.items():
            if self.chance.random() < 0.5:
                reports.append({"runId": run_id, "epoch": epoch, "event": "started"})
            if self.chance.random() < 0.5:
                outcome = self.chance.choice(["completed", "failed", "lost"])
                reports.append(
                    {"runId": run_id, "epoch": epoch, "event": "finished", "outcome": outcome, "result": "aGk="}
                )
        return reports

    def _print(self, executor: FakeExecutor) -> list[dict[str, Any]]:
        chunk = {"stream": "stdout", "at": "2026-01-01T00:00:00Z", "data": "aGk="}
        return [
            {"runId": run_id, "epoch": epoch, "seq": self.chance.randrange(5), **chunk}
            for run_id, epoch in executor.held.items()
        ]


CONTRADICTIONS = """
SELECT t.id, t.status, r.status AS run_status, r.epoch, l.epoch AS lease_epoch
  FROM scheduler.tasks t
  LEFT JOIN scheduler.runs r ON r.task_id = t.id AND r.finished_at IS NULL
  LEFT JOIN scheduler.leases l ON l.run_id = r.id
 WHERE (t.status IN ('queued', 'running')) <> (r.id IS NOT NULL)
    OR (r.status IN ('claimed', 'running', 'stopping')) <> (l.run_id IS NOT NULL)
    OR l.epoch <> r.epoch OR l.executor_id <> r.executor_id OR l.boot_id <> r.boot_id
"""
COUNTS = """
SELECT count(*) FILTER (WHERE status = 'completed') AS completed,
       (SELECT count(*) FROM scheduler.runs WHERE status = 'lost') AS lost,
       (SELECT count(*) FROM scheduler.runs WHERE epoch > 1) AS taken_over
  FROM scheduler.tasks
"""


def test_whatever_happens_at_once_the_rows_agree(settled_client, user, pool, publisher, users, waker):
    at_once = DispatchConfig(publish_within=timedelta(0), claim_within=timedelta(0))
    sweeper = Sweeper(
        pool=pool,
        dispatcher=Dispatcher(pool=pool, publisher=publisher, config=at_once),
        users=users,
        config=SweepConfig(slow_tick=timedelta(0), executor_silence=timedelta(days=1)),
        wake_dispatch=waker.wake,
    )
    executors = [FakeExecutor(settled_client, name=f"e{number}", engine="shared", slots=6) for number in range(3)]
    for executor in executors:
        executor.sync()
    world = World(random.Random(5), user, pool, publisher.sent)
    chaos = Chaos()

    for act in (world.create, world.create, world.disturb, world.expire, sweeper.run_once):
        chaos.start(act)
    for _ in range(2):
        chaos.start(Dispatcher(pool=pool, publisher=publisher, config=DispatchConfig()).run_once)
    for executor in executors:
        chaos.start(partial(world.work, executor))
    chaos.join()

    assert chaos.failures == []
    with pool.connection() as connection:
        contradictions = connection.execute(CONTRADICTIONS).fetchall()
        counts = connection.execute(COUNTS).fetchone()
    assert contradictions == []
    assert counts is not None
    assert min(counts.values()) > 0, counts
