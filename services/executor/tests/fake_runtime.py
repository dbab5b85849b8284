"""An engine in memory that fails when told to. It passes the real one's contract tests."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from services.executor import runtime as rt

IMAGE_ID = "sha256:" + "1" * 64


@dataclass(frozen=True)
class Program:
    """What a container does: writes, then ends with a code after `seconds`, or goes on until it is killed."""

    output: Sequence[tuple[rt.Stream, bytes]] = ()
    exit_code: int = 0
    runs_on: bool = False
    seconds: float = 0.0
    ignores_sigterm: bool = False
    sigterm_exit_code: int = 143
    oom_killed: bool = False
    oom_event: bool = False
    refused: str | None = None


# The commands that the contract tests run on both engines.
PROGRAMS: Mapping[tuple[str, ...], Program] = {
    ("true",): Program(),
    ("sh", "-c", "exit 3"): Program(exit_code=3),
    ("sh", "-c", "printf 'a\\000\\377b'; printf err >&2"): Program([("stdout", b"a\0\xffb"), ("stderr", b"err")]),
    ("sleep", "60"): Program(runs_on=True),
    ("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"): Program(
        [("stdout", b"ready\n")], runs_on=True, ignores_sigterm=True
    ),
}


@dataclass(frozen=True)
class JournalEntry:
    """One start or end of a container, as it truly was, whatever the engine told anybody of it."""

    event: Literal["start", "end"]
    name: str
    container_id: str


@dataclass
class FakeContainer:
    container_id: str
    name: str
    options: Mapping[str, Any]
    program: Program
    created_at: datetime
    status: str = "created"
    starts: int = 0
    reads: int = 0
    exit_code: int = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None
    output: list[tuple[rt.Stream, bytes]] = field(default_factory=list)
    signals: list[str] = field(default_factory=list)


class FakeEngine:
    """What outlives a client: containers, images, and the failures that a test asks for.

    `before[method]` is raised or called before the method does anything; `after[method]` when it has done it, as
    when the answer was lost. Each is used once.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.containers: dict[str, FakeContainer] = {}
        self.images = {"busybox"}
        self.registry: dict[str, rt.RuntimeFailure | None] = {}
        self.programs = dict(PROGRAMS)
        self.down = False
        self.began: datetime | None = None
        # How far its clock is ahead of the executor's.
        self.ahead = timedelta(0)
        self.broken_streams = 0
        self.before: dict[str, Exception | Callable[[], None]] = {}
        self.after: dict[str, Exception | Callable[[], None]] = {}
        self.calls: list[str] = []
        self.history: list[FakeContainer] = []
        self.journal: list[JournalEntry] = []

    def add(self, name: str, **changes: Any) -> FakeContainer:
        """A container that somebody made."""
        options = changes.pop("options", {"Image": "busybox", "Labels": {}})
        argv = tuple(options.get("Cmd", ()))
        container = FakeContainer(
            container_id=uuid.uuid4().hex,
            name=name,
            options=options,
            program=self.programs.get(argv, Program()),
            created_at=self.now(),
        )
        for key, value in changes.items():
            setattr(container, key, value)
        with self.changed:
            self.containers[container.container_id] = container
            self.history.append(container)
            self.changed.notify_all()
        return container

    def begin(self, container: FakeContainer) -> None:
        with self.changed:
            container.starts += 1
            container.status = "running"
            container.started_at = self.now()
            container.output.extend(container.program.output)
            self.journal.append(JournalEntry("start", container.name, container.container_id))
            if container.program.seconds:
                timer = threading.Timer(container.program.seconds, self._end_by_itself, (container,))
                timer.daemon = True
                timer.start()
            elif not container.program.runs_on:
                self.finish(container, container.program.exit_code)
            self.changed.notify_all()

    def write(self, container: FakeContainer, stream: rt.Stream, data: bytes) -> None:
        with self.changed:
            container.output.append((stream, data))
            self.changed.notify_all()

    def finish(self, container: FakeContainer, exit_code: int) -> None:
        with self.changed:
            container.status = "exited"
            container.exit_code = exit_code
            container.finished_at = self.now()
            self.journal.append(JournalEntry("end", container.name, container.container_id))
            self.changed.notify_all()

    def _end_by_itself(self, container: FakeContainer) -> None:
        with self.changed:
            if container.status == "running":
                self.finish(container, container.program.exit_code)

    def check_journal(self) -> None:
        """No container was ever started twice, and no two of one name were at work at a time."""
        with self.changed:
            entries = list(self.journal)
        started: set[str] = set()
        at_work: dict[str, str] = {}
        for entry in entries:
            if entry.event == "end":
                at_work.pop(entry.name, None)
                continue
            assert entry.container_id not in started, f"{entry.name} was started twice"
            assert entry.name not in at_work, f"two containers of {entry.name} were at work at a time"
            started.add(entry.container_id)
            at_work[entry.name] = entry.container_id

    def break_streams(self) -> None:
        """All open streams end as when the engine goes away."""
        with self.changed:
            self.broken_streams += 1
            self.changed.notify_all()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def only(self) -> FakeContainer:
        (container,) = self.containers.values()
        return container

    def wait(self, done: Callable[[], bool], seconds: float = 5.0) -> None:
        with self.changed:
            assert self.changed.wait_for(done, seconds), "the engine didn't get there"


class FakeRuntime:
    """One client of a FakeEngine."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    def describe(self) -> rt.EngineInfo:
        self._enter("describe")
        return rt.EngineInfo(engine_id="engine-1", host="here", version="0", now=self._engine.now())

    def create(self, name: str, options: Mapping[str, Any]) -> str:
        self._enter("create")
        with self._engine.changed:
            if ":::" in options["Image"]:
                raise rt.InvalidReference("invalid reference format")
            if options["Image"] not in self._engine.images:
                raise rt.ImageMissing(options["Image"])
            if any(each.name == name for each in self._engine.containers.values()):
                raise rt.NameTaken(name)
            container = self._engine.add(name, options=options)
        self._leave("create")
        return container.container_id

    def start(self, container_id: str) -> None:
        self._enter("start")
        container = self._get(container_id)
        if container.program.refused is not None:
            raise rt.EngineRefused(container.program.refused)
        self._engine.begin(container)
        self._leave("start")

    def attach(self, container_id: str, *, on_open: rt.OnInterruptible) -> Iterator[tuple[rt.Stream, bytes]]:
        self._enter("attach")
        return self._read(self._get(container_id), on_open)

    def follow(self, container_id: str, *, on_open: rt.OnInterruptible) -> Iterator[tuple[rt.Stream, bytes]]:
        self._enter("follow")
        return self._read(self._get(container_id), on_open)

    def find_began(self) -> datetime | None:
        return self._engine.began

    def find(self, name_or_id: str) -> rt.ContainerState | None:
        self._enter("find")
        with self._engine.changed:
            for each in self._engine.containers.values():
                if name_or_id in (each.container_id, each.name):
                    return _state(each)
        return None

    def kill(self, container_id: str, signal: str) -> bool:
        self._enter("kill")
        with self._engine.changed:
            container = self._engine.containers.get(container_id)
            if container is None or container.status != "running":
                return False
            container.signals.append(signal)
            if signal == "SIGKILL":
                self._engine.finish(container, 137)
            elif not container.program.ignores_sigterm:
                self._engine.finish(container, container.program.sigterm_exit_code)
        self._leave("kill")
        return True

    def remove(self, container_id: str) -> None:
        self._enter("remove")
        with self._engine.changed:
            container = self._engine.containers.get(container_id)
            if container is not None and container.status == "running":
                raise rt.ContainerRuns(container_id)
            self._engine.containers.pop(container_id, None)
            self._engine.changed.notify_all()

    def pull(self, image: str, *, limit: timedelta, on_open: rt.OnInterruptible) -> None:
        self._enter("pull")
        interrupted = threading.Event()
        on_open(interrupted.set)
        if interrupted.is_set():
            raise rt.PullInterrupted(image)
        error = self._engine.registry.get(image, rt.ImageNotFound("manifest unknown"))
        if error is not None:
            raise error
        self._engine.images.add(image)

    def find_image(self, image: str) -> str | None:
        self._enter("find_image")
        return "sha256:digest" if image == IMAGE_ID or image in self._engine.images else None

    def list_containers(self, *, instance: str) -> Sequence[rt.ContainerSummary]:
        self._enter("list_containers")
        return [
            rt.ContainerSummary(each.container_id, each.status, each.created_at, each.options["Labels"])
            for each in self._engine.containers.values()
            if each.options["Labels"].get(rt.LABEL_INSTANCE) == instance and rt.LABEL_RUN in each.options["Labels"]
        ]

    def ensure_network(self, network: rt.TaskNetwork) -> None:
        self._enter("ensure_network")

    def list_subnets(self, *, container: str, except_network: str) -> Sequence[str]:
        self._enter("list_subnets")
        return ["172.30.0.0/16"]

    def run_helper(self, name: str, options: Mapping[str, Any], *, limit: timedelta) -> rt.HelperResult:
        self._enter("run_helper")
        return rt.HelperResult(exit_code=0, output="rules set")

    def close(self) -> None:
        """Nothing is open."""

    def _enter(self, method: str) -> None:
        self._engine.calls.append(method)
        _fail(self._engine.before.pop(method, None))
        if self._engine.down:
            raise rt.EngineUnavailable("down")

    def _leave(self, method: str) -> None:
        _fail(self._engine.after.pop(method, None))

    def _get(self, container_id: str) -> FakeContainer:
        container = self._engine.containers.get(container_id)
        if container is None:
            raise rt.ContainerGone(container_id)
        return container

    def _read(self, container: FakeContainer, on_open: rt.OnInterruptible) -> Iterator[tuple[rt.Stream, bytes]]:
        engine = self._engine
        opened_at = engine.broken_streams
        shut = threading.Event()

        def interrupt() -> None:
            with engine.changed:
                shut.set()
                engine.changed.notify_all()

        def broken() -> bool:
            return shut.is_set() or engine.broken_streams > opened_at

        def read_from(position: int) -> list[tuple[rt.Stream, bytes]]:
            with engine.changed:
                engine.changed.wait_for(
                    lambda: len(container.output) > position or container.status == "exited" or broken()
                )
                if shut.is_set():
                    raise rt.StreamBroken("it was broken off")
                if broken():
                    raise rt.EngineUnavailable("the stream broke")
                return container.output[position:]

        def give() -> Iterator[tuple[rt.Stream, bytes]]:
            position = 0
            while fresh := read_from(position):
                position += len(fresh)
                yield from fresh

        on_open(interrupt)
        return give()


def _fail(failure: Exception | Callable[[], None] | None) -> None:
    if isinstance(failure, Exception):
        raise failure
    if failure is not None:
        failure()


def _state(container: FakeContainer) -> rt.ContainerState:
    return rt.ContainerState(
        container_id=container.container_id,
        status=container.status,
        exit_code=container.exit_code,
        oom_killed=container.program.oom_killed,
        error="",
        started_at=container.started_at,
        finished_at=container.finished_at,
        image_id=IMAGE_ID,
        labels=container.options["Labels"],
    )
