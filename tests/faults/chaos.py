"""Carries a plan of faults out against a composed stack, and notes what it did, and when."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import docker
from docker.errors import APIError, DockerException
from docker.models.containers import Container

from tests.faults.oracle import NANOSECONDS
from tests.faults.plan import COMPOSED, ENGINE, REPLICAS, Fault
from tests.faults.probes import is_there
from tests.integration.stack import Stack
from tests.polling import wait_until

# The scripts run in a container of the loops, which is on the broker's and the database's networks.
_OPEN_BROKER = """
import json, os, pika
from libs.common.topology import RUNS_QUEUE
connection = pika.BlockingConnection(pika.URLParameters(os.environ["BROKER_URL"]))
channel = connection.channel()
"""
# Nothing is lost with an empty queue: this waits until a message waits.
_WIPE = (
    _OPEN_BROKER
    + """
import time
deadline = time.monotonic() + {seconds}
while channel.queue_declare(RUNS_QUEUE, passive=True).method.message_count == 0 and time.monotonic() < deadline:
    time.sleep(0.05)
print(json.dumps(channel.queue_{kind}(RUNS_QUEUE).method.message_count))
"""
)
# Live runs first, the newest of them; then such as have just been closed.
_DUPLICATE = (
    _OPEN_BROKER
    + """
import psycopg
from libs.common.messages import RunMessage
with psycopg.connect(os.environ["DATABASE_URL"]) as database:
    runs = database.execute(
        "SELECT id, task_id FROM scheduler.runs ORDER BY finished_at IS NOT NULL, queued_at DESC LIMIT {count}"
    ).fetchall()
for run_id, task_id in runs:
    channel.basic_publish("", RUNS_QUEUE, RunMessage(run_id, task_id).encode())
connection.close()
print(json.dumps(len(runs)))
"""
)
# More than a daemon gives the containers that it stops.
_STOP_SECONDS = 25
_BACK_SECONDS = 60.0
# The tasks that come with a wipe are created when the longest cut is over.
_WIPE_SECONDS = 40.0


@dataclass(frozen=True, slots=True)
class Struck:
    """A fault as it happened. `target` is the container's short id, which is also an executor's id.

    `detail` is how many messages a broker fault met; `error` says why it could not be carried out.
    """

    fault: Fault
    target: str
    began: datetime
    ended: datetime
    detail: int = 0
    error: str = ""

    @property
    def name(self) -> str:
        return f"{self.fault.kind} {self.fault.service}"


class Chaos:
    """`run` returns when the last fault of the plan is over and every part is back."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._lock = threading.Lock()
        self._in_hand: defaultdict[tuple[str, int], threading.Lock] = defaultdict(threading.Lock)
        self._struck: list[Struck] = []
        # When the tasks' engine went down, in nanoseconds since the epoch, by the machine's own engine.
        self.engine_ends: list[int] = []
        self._containers: dict[tuple[str, int], str] = {}
        for service, replicas in REPLICAS.items():
            found = list_replicas(stack, service)
            assert len(found) == replicas, f"{len(found)} of {service}, not {replicas}"
            self._containers |= {(service, number): str(each.id) for number, each in enumerate(found)}

    def run(self, plan: Sequence[Fault]) -> Sequence[Struck]:
        began = time.monotonic()
        threads = []
        for fault in plan:
            time.sleep(max(0.0, began + fault.at - time.monotonic()))
            thread = threading.Thread(target=self._strike, args=(fault,), daemon=True)
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join(timeout=120.0)
        self._heal()
        return sorted(self._struck, key=lambda struck: struck.began)

    def _strike(self, fault: Fault) -> None:
        """In a thread with a client of its own: the SDK's is not for several threads.

        A part that is about to be taken away has to be back from the last time: on a busy machine that takes long,
        and to kill what never came up proves nothing.
        """
        key = fault.service, fault.replica
        detail, error = 0, ""
        with (
            closing(docker.from_env(timeout=60)) as engine,
            self._in_hand[key] if fault.seconds else nullcontext(),
        ):
            began = datetime.now(UTC)
            try:
                container = engine.containers.get(self._containers[key])
                if fault.seconds:
                    what = f"{fault.service} was back"
                    wait_until(lambda: is_there(container), what=what, seconds=_BACK_SECONDS, every=0.5)
                    began = datetime.now(UTC)
                detail = self._act(engine, container, fault) or 0
            except (DockerException, OSError, AssertionError, ValueError) as failure:
                error = f"{type(failure).__name__}: {failure}"[:300]
            ended = datetime.now(UTC)
        with self._lock:
            self._struck.append(Struck(fault, self._containers[key][:12], began, ended, detail, error))

    def _act(self, engine: docker.DockerClient, container: Container, fault: Fault) -> int | None:
        match fault.kind:
            case "kill" | "stop":
                return self._end(container, fault)
            case "pause":
                return _pause(container, fault.seconds)
            case "cut":
                return _cut(engine, container, f"{self._stack.project}_{fault.network}", fault.seconds)
            case "purge" | "delete":
                return self._run_script(engine, _WIPE.format(kind=fault.kind, seconds=_WIPE_SECONDS))
            case "duplicate":
                return self._run_script(engine, _DUPLICATE.format(count=fault.count))

    def _end(self, container: Container, fault: Fault) -> None:
        with suppress(APIError):
            # It may have died by itself a moment ago, of another part's death.
            container.kill() if fault.kind == "kill" else container.stop(timeout=_STOP_SECONDS)
        time.sleep(fault.seconds)
        if fault.service == ENGINE:
            self._note_engine_end(container)
        insist(container.start)

    def _note_engine_end(self, container: Container) -> None:
        container.reload()
        ended_at = datetime.fromisoformat(container.attrs["State"]["FinishedAt"])
        with self._lock:
            self.engine_ends.append(round(ended_at.timestamp() * NANOSECONDS))

    def _run_script(self, engine: docker.DockerClient, script: str) -> int:
        """What the script prints. The broker or the container itself may be away just now: then again."""
        failure = ""
        deadline = time.monotonic() + _BACK_SECONDS
        for replica in itertools.cycle(range(REPLICAS["scheduler-loops"])):
            if time.monotonic() > deadline:
                break
            container = engine.containers.get(self._containers["scheduler-loops", replica])
            try:
                result = container.exec_run(["python3", "-c", script])
            except APIError as error:
                failure = str(error)
            else:
                if result.exit_code == 0:
                    answer: int = json.loads(result.output)
                    return answer
                failure = result.output.decode(errors="replace")[-200:]
            time.sleep(1.0)
        raise ValueError(failure)

    def _heal(self) -> None:
        """Nothing stays away because a fault could not be undone."""
        for container_id in self._containers.values():
            container = self._stack.engine.containers.get(container_id)
            if container.status == "paused":
                container.unpause()
            elif container.status != "running":
                container.start()


def list_replicas(stack: Stack, service: str) -> Sequence[Container]:
    """The containers that play the part of a service, always in the same order."""
    found = [each for name in COMPOSED.get(service, (service,)) for each in stack.containers(name)]
    return sorted(found, key=lambda container: container.name or "")


def _pause(container: Container, seconds: float) -> None:
    insist(container.pause)
    time.sleep(seconds)
    insist(container.unpause)


def _cut(engine: docker.DockerClient, container: Container, network_name: str, seconds: float) -> None:
    network = engine.networks.get(network_name)
    aliases = container.attrs["NetworkSettings"]["Networks"][network_name]["Aliases"]
    network.disconnect(container)
    time.sleep(seconds)
    insist(lambda: network.connect(container, aliases=aliases))


def insist(call: Callable[[], Any]) -> None:
    """What the engine is told has to work, however busy it is."""

    def succeeded() -> bool:
        try:
            call()
        except APIError:
            return False
        return True

    wait_until(succeeded, what="the engine did it", seconds=_BACK_SECONDS, every=0.5)
