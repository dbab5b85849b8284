"""What the executor asks of a container engine: values, errors, and the `Runtime` that two engines implement.

`docker_runtime.py` is the real one, `noop_runtime.py` runs nothing (benchmarks only), `tests/fake_runtime.py`
stands in for an engine that fails on demand. The real one and the fake pass the same contract tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol

Stream = Literal["stdout", "stderr"]
Interrupt = Callable[[], None]
OnInterruptible = Callable[[Interrupt], None]

LABEL_INSTANCE = "taskrunner.instance"
LABEL_TASK = "taskrunner.task"
LABEL_RUN = "taskrunner.run"
LABEL_EPOCH = "taskrunner.epoch"
LABEL_EXECUTOR = "taskrunner.executor"
LABEL_BOOT = "taskrunner.boot"


class RuntimeFailure(Exception):
    """The engine didn't do what it was asked."""


class EngineUnavailable(RuntimeFailure):
    """The engine didn't answer, so whether it did the thing isn't known: look before doing it again."""


class EngineRefused(RuntimeFailure):
    """The engine answered with an error that is none of the others."""


class EngineFault(EngineRefused):
    """The engine failed at it (its answer was an error of its own): another try may go better."""


class ImageMissing(RuntimeFailure):
    """The engine doesn't have the image: pull it."""


class InvalidReference(RuntimeFailure):
    """The image's name can't be one."""


class ImageNotFound(RuntimeFailure):
    """The registry doesn't have the image, or doesn't show it to us."""


class PullFailed(RuntimeFailure):
    """The registry couldn't be reached, broke off, or took too long."""


class PullInterrupted(RuntimeFailure):
    """The pull was broken off from another thread."""


class NameTaken(RuntimeFailure):
    """A container of that name exists."""


class CommandRefused(RuntimeFailure):
    """The engine can't start the command."""


class ContainerGone(RuntimeFailure):
    """No such container."""


class StreamBroken(RuntimeFailure):
    """Output ended in the middle, or was broken off from another thread."""


class ContainerRuns(RuntimeFailure):
    """A running container isn't removed."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Who an engine is. `now` is its time, not this machine's; all times of containers are in it."""

    engine_id: str
    host: str
    version: str
    now: datetime


@dataclass(frozen=True, slots=True)
class ContainerState:
    """`status` is the engine's word: created, running, paused, exited, dead, removing, restarting."""

    container_id: str
    status: str
    exit_code: int
    oom_killed: bool
    error: str
    started_at: datetime | None
    finished_at: datetime | None
    image_id: str
    labels: Mapping[str, str]

    @property
    def exited(self) -> bool:
        return self.status in ("exited", "dead")

    @property
    def never_started(self) -> bool:
        return self.status == "created"


@dataclass(frozen=True, slots=True)
class ContainerSummary:
    """A line of the engine's list of containers."""

    container_id: str
    status: str
    created_at: datetime
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TaskNetwork:
    """The bridge network of the containers that may reach outside."""

    name: str
    bridge: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class HelperResult:
    """How a one-shot helper container ended."""

    exit_code: int
    output: str


class Runtime(Protocol):
    """One connection to an engine, used by one thread.

    Every method may raise EngineUnavailable; those below are in addition to it.
    """

    def describe(self) -> EngineInfo:
        """Who the engine is."""

    def create(self, name: str, options: Mapping[str, Any]) -> str:
        """Create a container, don't start it; its id.

        Raises ImageMissing, InvalidReference, NameTaken, CommandRefused, EngineRefused, EngineFault.
        """

    def start(self, container_id: str) -> None:
        """Raises CommandRefused, ContainerGone, EngineRefused."""

    def attach(self, container_id: str, *, on_open: OnInterruptible) -> Iterator[tuple[Stream, bytes]]:
        """The output of a container that is about to be started, as it is written, until it ends.

        It is open when this returns, so a start after it loses nothing. `on_open` gets a function that ends the
        iteration from another thread. Raises ContainerGone, EngineRefused, and StreamBroken while it is iterated.
        """

    def follow(self, container_id: str, *, on_open: OnInterruptible) -> Iterator[tuple[Stream, bytes]]:
        """The engine's copy of the output, from the first byte until the container ends; `on_open` as above.

        Some engines forget the last lines of a container that ends meanwhile: follow it once more after its end.
        Raises as above.
        """

    def find_began(self) -> datetime | None:
        """The latest time at which the daemon can have begun; None when that can't be told.

        EngineUnavailable also from a daemon that is stopping, and still serves who is connected.
        """

    def find(self, name_or_id: str) -> ContainerState | None:
        """The container's state, None when the engine has no such container."""

    def kill(self, container_id: str, signal: str) -> bool:
        """Send a signal. False when the container isn't running."""

    def remove(self, container_id: str) -> None:
        """Remove it and its anonymous volumes, never by force; one that is absent counts as removed.

        Raises ContainerRuns, EngineRefused.
        """

    def pull(self, image: str, *, limit: timedelta, on_open: OnInterruptible) -> None:
        """Raises ImageNotFound, InvalidReference, PullFailed, PullInterrupted."""

    def find_image(self, image: str) -> str | None:
        """The image's repository digest, or its id when it came from no registry; None when it is missing."""

    def list_containers(self, *, instance: str) -> Sequence[ContainerSummary]:
        """The task containers of one system, in every state."""

    def ensure_network(self, network: TaskNetwork) -> None:
        """Make the network unless it exists. Raises EngineRefused when it exists and isn't what we need."""

    def list_subnets(self, *, container: str, except_network: str) -> Sequence[str]:
        """The subnets of the networks of a container, and of its Compose project.

        Empty when there is no such container.
        """

    def run_helper(self, name: str, options: Mapping[str, Any], *, limit: timedelta) -> HelperResult:
        """Run a helper container to its end and remove it, and first what is left of an earlier one of its name.

        Raises ImageMissing, EngineRefused.
        """

    def close(self) -> None:
        """Let the connections go."""
