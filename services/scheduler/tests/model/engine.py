"""A container engine as far as safety depends on it: names, starts, exits, and calls that are carried out late."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID


class State(StrEnum):
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"


@dataclass(slots=True, kw_only=True, eq=False)
class Container:
    engine: Engine
    name: UUID
    run_id: UUID
    epoch: int
    boot_id: str
    state: State = State.CREATED
    exit_code: int | None = None
    starts: int = 0
    removed: bool = False


class NameTaken(Exception):
    """Another container has that name."""


class Engine:
    """`heard_at`: when the scheduler last heard of one of its executors. `late`: calls that it still has to do."""

    def __init__(self, name: str, *, heard_at: datetime, names_are_exclusive: bool) -> None:
        self.name = name
        self.heard_at = heard_at
        self.containers: list[Container] = []
        self.late: list[Callable[[], object]] = []
        self._names_are_exclusive = names_are_exclusive

    @property
    def present(self) -> list[Container]:
        return [each for each in self.containers if not each.removed]

    @property
    def running(self) -> list[Container]:
        return [each for each in self.containers if each.state == State.RUNNING]

    def create(self, name: UUID, *, run_id: UUID, epoch: int, boot_id: str) -> Container:
        if self._names_are_exclusive and self.find(name) is not None:
            raise NameTaken(str(name))
        container = Container(engine=self, name=name, run_id=run_id, epoch=epoch, boot_id=boot_id)
        self.containers.append(container)
        return container

    def find(self, name: UUID) -> Container | None:
        """Names that aren't exclusive may answer with any that has it; the one that doesn't run is the worst."""
        found = [each for each in self.present if each.name == name]
        return min(found, key=lambda each: each.state == State.RUNNING, default=None)

    def start(self, container: Container) -> bool:
        """False when it isn't there any more. An exited one starts again, as with Docker."""
        if container.removed:
            return False
        if container.state != State.RUNNING:
            container.state = State.RUNNING
            container.starts += 1
        return True

    def remove(self, container: Container) -> bool:
        """Without force: False when it runs. What is gone already is as good as removed."""
        if container.state == State.RUNNING:
            return False
        container.removed = True
        return True

    def end(self, container: Container, exit_code: int) -> None:
        if container.state == State.RUNNING:
            container.state, container.exit_code = State.EXITED, exit_code
