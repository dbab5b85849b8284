"""An executor over the fake engine: all its parts and threads, less the process, the broker and the waiting.

The scheduler is the fake one, asked without a network, so that what is seen is between executor and engine. As the
real one does, it makes another run for a task whose run was lost.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from libs.common.consumer import Delivery
from libs.common.messages import RunMessage
from libs.common.topology import RUNS_QUEUE
from services.executor import asking, execution, following, network_guard, reaper, stopper, sync
from services.executor import runtime as rt
from services.executor.docker_runtime import DockerRuntime
from services.executor.engine import EngineMonitor
from services.executor.meter import Meter
from services.executor.network_guard import GuardSettings, NetworkGuard, guard_name
from services.executor.prefetch import Prefetcher
from services.executor.reaper import Reaper
from services.executor.slots import Duties, Slots
from services.executor.spool import Spool
from services.executor.stopper import Stopper
from services.executor.sync import Sync
from services.executor.sync_request import Identity
from services.executor.tests.builders import BOOT_ID, make_settings
from services.executor.tests.fake_engine.daemon import FakeDaemon
from services.executor.tests.fake_runtime import FakeContainer, Program
from services.executor.tests.fake_scheduler import FakeScheduler, Row
from services.executor.tools import Tools
from tests.polling import wait_until

SLOTS = 2
CALL_SECONDS = 0.3
LOOK_SECONDS = 0.3
PULL_LIMIT = timedelta(seconds=1)
INSTANCE = "test"
GUARD = GuardSettings(
    instance=INSTANCE, executor_id="executor-1", network="test-tasks", image="guard", allow=(), deny=()
)
# As docs/task-model.md says of a task whose runs are lost.
MOST_LOST_RUNS = 6

# What takes seconds takes hundredths of them.
_HURRY = {
    (asking, "TRIES"): 6,
    (asking, "FIRST_PAUSE_SECONDS"): 0.01,
    (asking, "LAST_PAUSE_SECONDS"): 0.02,
    (following, "COPY_PAUSE_SECONDS"): 0.01,
    (network_guard, "HELPER_LIMIT"): timedelta(seconds=0.3),
    (reaper, "STREAM_SECONDS"): 0.2,
    (execution, "FRUITLESS_PAUSE_SECONDS"): 0.01,
    (execution, "LEFTOVER_SECONDS"): 1.5,
    (execution, "LEFTOVER_PAUSE_SECONDS"): 0.02,
    (execution, "STARTED_REPORT_DELAY_SECONDS"): 0.01,
    (reaper, "GRACE_SECONDS"): 0.2,
    (stopper, "RETRY_SECONDS"): 0.05,
    (stopper, "IDLE_SECONDS"): 0.05,
    (sync, "BUSY_INTERVAL_SECONDS"): 0.03,
    (sync, "IDLE_INTERVAL_SECONDS"): 0.03,
    (sync, "OUTPUT_SOON_SECONDS"): 0.02,
    (sync, "OUTPUT_EVERY_SECONDS"): 0.02,
}


class FakeMessages:
    """The broker's side: what may be in hand, and what is."""

    def __init__(self) -> None:
        self.capacity = 0
        self.waiting: list[bytes] = []
        self.in_hand: set[Delivery] = set()
        self.deliver: Callable[[Delivery], None]
        self._lock = threading.RLock()

    def publish(self, body: bytes) -> None:
        with self._lock:
            self.waiting.append(body)
        self._balance()

    def set_capacity(self, capacity: int) -> None:
        self.capacity = capacity
        self._balance()

    def done(self, delivery: Delivery) -> None:
        with self._lock:
            self.in_hand.discard(delivery)
        self._balance()

    def reject(self, delivery: Delivery) -> None:
        self.done(delivery)

    def give_back(self, delivery: Delivery) -> None:
        with self._lock:
            self.waiting.append(delivery.body)
        self.done(delivery)

    def _balance(self) -> None:
        while True:
            with self._lock:
                if not self.waiting or len(self.in_hand) >= self.capacity:
                    return
                delivery = Delivery(
                    body=self.waiting.pop(0),
                    request_id=None,
                    redelivered=False,
                    tag="",
                    queue=RUNS_QUEUE,
                    delivery_tag=0,
                )
                self.in_hand.add(delivery)
            self.deliver(delivery)


class Stand:
    """`daemon` is the engine, `scheduler` the scheduler. `ended` tells the stand's own threads to go."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for (module, name), seconds in _HURRY.items():
            monkeypatch.setattr(module, name, seconds)
        self.daemon = FakeDaemon(directory / "docker.sock")
        self.daemon.engine.images.add(GUARD.image)
        self.scheduler = FakeScheduler()
        self._opened: list[DockerRuntime] = []
        self.messages = FakeMessages()
        self.ended = threading.Event()
        # What goes wrong with a task's calls doesn't go wrong with the guard's, unless a test wants it to.
        self.daemon.script.spared = guard_name(GUARD)
        self.monitor = EngineMonitor(
            runtime=self.open_runtime(), guard=NetworkGuard(GUARD), on_change=self._balance
        )
        self._slots: Slots | None = None
        self._spool = Spool(directory=None, limit_bytes=0)
        self._stopper = self._make_stopper()
        duties = Duties(
            stopper=self._stopper, prefetcher=Prefetcher(runtime=self.open_runtime(), limit=PULL_LIMIT)
        )
        self.sync = Sync(
            identity=Identity("executor-1", BOOT_ID, "engine-1", "here", SLOTS),
            post=self.scheduler.answer,
            listener=duties,
        )
        self._slots = duties.slots = Slots(
            count=SLOTS,
            sync=self.sync,
            messages=self.messages,
            make_tools=self._make_tools,
            may_take=lambda: self.monitor.ready,
        )
        self.messages.deliver = self._slots.deliver
        self._reaper = Reaper(
            runtime=self.open_runtime(),
            sync=self.sync,
            instance=INSTANCE,
            now=lambda: datetime.now(UTC) + timedelta(minutes=1),
        )
        self._slots.start()
        threading.Thread(target=self.sync.run, daemon=True).start()
        self._repeat(self.monitor.run_once)
        self._repeat(self._stopper.run_once)
        wait_until(lambda: self.monitor.ready, what="being ready")

    def open_runtime(self) -> DockerRuntime:
        runtime = DockerRuntime(self.daemon.docker_host, call_seconds=CALL_SECONDS, look_seconds=LOOK_SECONDS)
        self._opened.append(runtime)
        return runtime

    def reap(self) -> None:
        """From here on the reaper looks, as if everything that is there were old."""
        self._repeat(self._reaper.run_once)

    def add(self, program: Program, **changes: Any) -> Row:
        """A task with a run that waits on the queue."""
        command = f"program-{len(self.daemon.engine.programs)}"
        self.daemon.engine.programs[command,] = program
        row = self.scheduler.add(command=command, **changes)
        self.publish(row)
        return row

    def publish(self, row: Row) -> None:
        message = RunMessage(run_id=uuid.UUID(row.task["runId"]), task_id=uuid.UUID(row.task["taskId"]))
        self.messages.publish(message.encode())

    def run(self, program: Program, **changes: Any) -> Row:
        """A task to its end, through as many runs as it takes; its last run."""
        row = self.add(program, **changes)
        self.scheduler.wait_finished(row)
        while row.status == "lost" and row.task["number"] < MOST_LOST_RUNS:
            row = self.run_again(row)
            self.scheduler.wait_finished(row)
        return row

    def run_long(self) -> Row:
        """A task that writes something and ends once it was seen at work."""
        row = self.add(Program([("stdout", b"hello")], runs_on=True))
        self.finish(row)
        return row

    def finish(self, row: Row, exit_code: int = 0) -> None:
        """Have the run's container end by itself, and wait until that is reported."""
        self.scheduler.wait(lambda: row.started is not None)
        self.daemon.engine.finish(self.containers(row)[-1], exit_code)
        self.scheduler.wait_finished(row)

    def run_again(self, row: Row) -> Row:
        """Another run of a task whose run was lost."""
        again = self.scheduler.add(**(row.task | {"runId": str(uuid.uuid4()), "number": row.task["number"] + 1}))
        self.publish(again)
        return again

    def leave(self, row: Row, **changes: Any) -> FakeContainer:
        """A container that has the name of the row's task already."""
        labels = {rt.LABEL_INSTANCE: INSTANCE, rt.LABEL_RUN: str(uuid.uuid4())} | changes.pop("labels", {})
        options = {"Image": "busybox", "Cmd": [row.task["command"]], "Labels": labels}
        return self.daemon.engine.add(row.task["taskId"], options=options, **changes)

    def containers(self, row: Row) -> list[FakeContainer]:
        """All that the task ever had."""
        return [each for each in self.daemon.engine.history if each.name == row.task["taskId"]]

    def starts(self, row: Row) -> int:
        """How often any container of the task was started."""
        return sum(
            entry.event == "start" and entry.name == row.task["taskId"] for entry in self.daemon.engine.journal
        )

    def check_slots_are_free(self) -> None:
        """As many runs as there are slots are at work at the same time: no thread hangs in an earlier one."""
        self.daemon.script.clear()
        rows = [self.add(Program(runs_on=True)) for _ in range(SLOTS)]
        self.scheduler.wait(lambda: all(row.started for row in rows))
        for row in rows:
            self.finish(row)
            assert row.status == "completed"

    def close(self) -> None:
        self.ended.set()
        self.sync.end()
        self.daemon.down()
        for runtime in self._opened:
            runtime.close()

    def _make_stopper(self) -> Stopper:
        return Stopper(open_runtime=self.open_runtime)

    def _make_tools(self) -> Tools:
        return Tools(
            runtime=self.open_runtime(),
            reporter=self.sync,
            stops=self._stopper,
            engine=self.monitor,
            spool=self._spool,
            meter=Meter(None),
            settings=make_settings(),
            pull_limit=PULL_LIMIT,
        )

    def _balance(self) -> None:
        if self._slots is not None:
            self._slots.balance()

    def _repeat(self, look: Callable[[], object]) -> None:
        """The loop of a part, at a pace that a test can wait for."""

        def run() -> None:
            while not self.ended.wait(0.02):
                try:
                    look()
                except rt.RuntimeFailure:
                    continue

        threading.Thread(target=run, daemon=True).start()
