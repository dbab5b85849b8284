"""Removes what a crash left behind: containers of this system whose run the scheduler has closed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from libs.common.clock import utc_now
from services.executor.metrics import REAPED
from services.executor.runtime import (
    LABEL_EPOCH,
    LABEL_RUN,
    ContainerRuns,
    ContainerSummary,
    EngineUnavailable,
    Runtime,
    RuntimeFailure,
)

log = structlog.get_logger()

IDLE_INTERVAL_SECONDS = 20.0
BUSY_INTERVAL_SECONDS = 10.0
SUSPECT_AGE = timedelta(seconds=20)
REMOVE_AGE = timedelta(seconds=60)
REMOVABLE = ("exited", "dead", "created")


class Questions(Protocol):
    """The part of the sync that knows which runs are live."""

    def holds(self, run_id: str) -> bool: ...

    def ask_live(self, key: tuple[str, int]) -> bool | None: ...


class Reaper:
    """`run_once` looks at all containers; the caller repeats it."""

    def __init__(
        self, *, runtime: Runtime, sync: Questions, instance: str, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._runtime = runtime
        self._sync = sync
        self._instance = instance
        self._now = now
        # Containers whose run wasn't live when last asked. A run that has just been taken over isn't live under
        # the old epoch either, and its new holder still needs the container: so a second answer must agree.
        self._suspects: set[str] = set()
        self.busy = False

    def run_once(self) -> int:
        """The number of containers removed. EngineUnavailable when the engine is away."""
        found = {
            each.container_id: each
            for each in self._runtime.list_containers(instance=self._instance)
            if self._is_candidate(each)
        }
        self._suspects &= set(found)
        self.busy = bool(found)
        return sum(self._judge(each) for each in found.values())

    def _is_candidate(self, container: ContainerSummary) -> bool:
        return (
            container.status in REMOVABLE
            and self._now() - container.created_at > SUSPECT_AGE
            and not self._sync.holds(container.labels[LABEL_RUN])
        )

    def _judge(self, container: ContainerSummary) -> bool:
        live = self._sync.ask_live((container.labels[LABEL_RUN], int(container.labels[LABEL_EPOCH])))
        if live is None:
            return False
        if live:
            self._suspects.discard(container.container_id)
            return False
        is_second_answer = container.container_id in self._suspects
        self._suspects.add(container.container_id)
        if not is_second_answer or self._now() - container.created_at < REMOVE_AGE:
            return False
        return self._remove(container)

    def _remove(self, container: ContainerSummary) -> bool:
        try:
            self._runtime.remove(container.container_id)
        except EngineUnavailable:
            raise
        except (ContainerRuns, RuntimeFailure) as error:
            log.warning("leftover_not_removed", container_id=container.container_id[:12], error=str(error))
            return False
        self._suspects.discard(container.container_id)
        REAPED.inc()
        log.info("leftover_removed", run_id=container.labels[LABEL_RUN], container_id=container.container_id[:12])
        return True
