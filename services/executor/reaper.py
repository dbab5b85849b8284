"""Ends what no run owns any more: containers of this system whose run the scheduler has closed.

A crash leaves stopped ones behind; an engine that was given up and came back, running ones. Whether a container is
wanted is a question to the scheduler, by the run's id alone, for the epoch on the label is its creator's, and the
run may have been taken over since. "Not live" is final: a run that has closed never lives again, so an answer may
be late without harm. Without an answer nothing is touched. (docs/task-model.md, Leftovers)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from services.executor.metrics import LEFTOVERS_STOPPED, REAPED
from services.executor.runtime import LABEL_RUN, ContainerSummary, EngineUnavailable, Runtime, RuntimeFailure
from services.executor.spec import is_run_id

log = structlog.get_logger()

IDLE_INTERVAL_SECONDS = 20.0
BUSY_INTERVAL_SECONDS = 10.0
ANSWER_INTERVAL_SECONDS = 3.0
STOPPING_INTERVAL_SECONDS = 1.0

# A younger container is nearly always one that is about to be removed by its own executor.
SUSPECT_AGE = timedelta(seconds=20)

# Nobody waits for a leftover's work, and its task's next run may wait for its name.
GRACE_SECONDS = 10.0

# A run's own thread takes a container's last output within moments of its end, unless the engine forgot to end it.
STREAM_SECONDS = 30.0

STOPPED = ("exited", "dead", "created")
ENDED = ("exited", "dead")
AT_WORK = ("running", "paused", "restarting")


class Questions(Protocol):
    """The part of the sync that knows which runs are live."""

    def holds(self, run_id: str) -> bool: ...

    def ask_live(self, run_id: str) -> bool | None: ...

    def break_stream(self, run_id: str) -> None: ...


@dataclass(slots=True)
class _Leftover:
    """A container whose run has closed. `terminated_at` is monotonic, None until SIGTERM was sent.

    `failures` counts what the engine didn't do for it.
    """

    terminated_at: float | None = None
    failures: int = 0


class Reaper:
    """`run_once` looks at all containers; the caller repeats it after `pause_seconds`. `now` is the engine's."""

    def __init__(
        self,
        *,
        runtime: Runtime,
        sync: Questions,
        instance: str,
        now: Callable[[], datetime],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runtime = runtime
        self._sync = sync
        self._instance = instance
        self._now = now
        self._monotonic = monotonic
        self._leftovers: dict[str, _Leftover] = {}
        self._ended_since: dict[str, float] = {}
        # A start may find leftovers.
        self._waiting = True

    @property
    def pause_seconds(self) -> float:
        """Until the next look: soon when something is being stopped, or an answer or a removal is due."""
        if any(leftover.terminated_at is not None for leftover in self._leftovers.values()):
            return STOPPING_INTERVAL_SECONDS
        if self._waiting:
            return ANSWER_INTERVAL_SECONDS
        return BUSY_INTERVAL_SECONDS if self._leftovers else IDLE_INTERVAL_SECONDS

    def run_once(self) -> int:
        """The number of containers removed. EngineUnavailable when the engine is away."""
        containers = self._runtime.list_containers(instance=self._instance)
        self._break_silent_streams(containers)
        found = {each.container_id: each for each in containers if self._is_candidate(each)}
        self._leftovers = {key: each for key, each in self._leftovers.items() if key in found}
        self._waiting = False
        unowned = [each for each in found.values() if self._is_unowned(each)]
        # One that the engine is stuck with ends the look, so it comes last.
        unowned.sort(key=lambda each: self._leftovers[each.container_id].failures)
        return sum(self._end(each) for each in unowned)

    def _break_silent_streams(self, containers: Sequence[ContainerSummary]) -> None:
        """Have a run look at its container that ended a while ago: an engine may forget to end its output."""
        now = self._monotonic()
        ended = {
            run_id: self._ended_since.get(run_id, now)
            for each in containers
            if each.status in ENDED and self._sync.holds(run_id := each.labels[LABEL_RUN])
        }
        for run_id, since in ended.items():
            if now - since >= STREAM_SECONDS:
                ended[run_id] = now
                self._sync.break_stream(run_id)
        self._ended_since = ended

    def _is_candidate(self, container: ContainerSummary) -> bool:
        run_id = container.labels[LABEL_RUN]
        return (
            container.status in (*STOPPED, *AT_WORK)
            and self._now() - container.created_at > SUSPECT_AGE
            # A label that somebody else made up would have the whole sync refused.
            and is_run_id(run_id)
            and not self._sync.holds(run_id)
        )

    def _is_unowned(self, container: ContainerSummary) -> bool:
        if container.container_id in self._leftovers:
            return True
        live = self._sync.ask_live(container.labels[LABEL_RUN])
        if live is None:
            self._waiting = True
            return False
        if not live:
            self._leftovers[container.container_id] = _Leftover()
        return not live

    def _end(self, container: ContainerSummary) -> bool:
        """Stop it or remove it, one step a look. True when it is removed."""
        try:
            if container.status in AT_WORK:
                self._stop(container)
                return False
            self._runtime.remove(container.container_id)
        except EngineUnavailable:
            self._leftovers[container.container_id].failures += 1
            raise
        except RuntimeFailure as error:
            log.warning("leftover_not_removed", **_ids(container), error=str(error))
            return False
        del self._leftovers[container.container_id]
        REAPED.inc()
        log.info("leftover_removed", **_ids(container))
        return True

    def _stop(self, container: ContainerSummary) -> None:
        leftover = self._leftovers[container.container_id]
        if leftover.terminated_at is None:
            log.warning("leftover_stopped", **_ids(container))
            LEFTOVERS_STOPPED.inc()
            leftover.terminated_at = self._monotonic()
            self._runtime.kill(container.container_id, "SIGTERM")
        elif self._monotonic() - leftover.terminated_at >= GRACE_SECONDS:
            self._runtime.kill(container.container_id, "SIGKILL")


def _ids(container: ContainerSummary) -> dict[str, str]:
    return {"run_id": container.labels[LABEL_RUN], "container_id": container.container_id[:12]}
