"""One run that this executor holds: its lease, its stop request, and what it has to report."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.executor.meter import UNKNOWN, Usage
from services.executor.outcome import Outcome, StopReason
from services.executor.output import Output
from services.executor.runtime import Interrupt
from services.executor.spec import TaskSpec

# A lease lasts 30 s at the scheduler. Ours counts from before the request was sent, so that this much of it
# is surely left when a container is created or started.
LEASE_FRESH_SECONDS = 25.0


def lease_clock() -> float:
    """Seconds that also pass while the machine sleeps, as they do for the scheduler."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class FinishedReport:
    """Everything that the scheduler needs to close the run. `pulled_seconds` None: somebody else pulled."""

    outcome: Outcome
    result: bytes | None
    started_at: datetime | None
    finished_at: datetime | None
    image_digest: str | None
    container_id: str | None
    usage: Usage = UNKNOWN
    pulled_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class StartedReport:
    """Sent only when the run still goes at `due` (monotonic): a short run needs no news in between."""

    container_id: str
    started_at: datetime
    due: float
    pulled_seconds: float | None = None


class HeldRun:
    """Shared by the thread that executes it, the sync thread and the stopper."""

    def __init__(
        self,
        *,
        spec: TaskSpec,
        epoch: int,
        output: Output,
        renewed_at: float,
        clock: Callable[[], float] = lease_clock,
    ) -> None:
        self.spec = spec
        self.epoch = epoch
        self.output = output
        self.stop_asked: StopReason | None = None
        self.stopped_for: StopReason | None = None
        self.was_killed = False
        self.started: StartedReport | None = None
        self.finished: FinishedReport | None = None
        self.pulling = False
        self.closed = threading.Event()
        # Set with `closed`, and when a stop is asked: a pause before another try ends with it.
        self.disturbed = threading.Event()
        self._settled = False
        self._released = False
        self._renewed_at = renewed_at
        self._clock = clock
        self._lock = threading.Lock()
        self._interrupt: Interrupt | None = None
        self._stop_interrupts = False

    @property
    def key(self) -> tuple[str, int]:
        return str(self.spec.run_id), self.epoch

    @property
    def log_ids(self) -> dict[str, Any]:
        return {
            "task_id": str(self.spec.task_id),
            "run_id": str(self.spec.run_id),
            "request_id": self.spec.request_id,
        }

    @property
    def released(self) -> bool:
        """It isn't this executor's any more: touch nothing."""
        return self._released

    @property
    def settled(self) -> bool:
        """The scheduler has taken the finished report, or has no use for it."""
        return self._settled

    @property
    def lease_is_fresh(self) -> bool:
        return self._clock() - self._renewed_at < LEASE_FRESH_SECONDS

    def renew(self, at: float) -> None:
        """The scheduler renewed the lease in a sync that was sent `at`."""
        self._renewed_at = max(self._renewed_at, at)

    def settle(self) -> None:
        self._settled = True
        self.closed.set()
        self.disturbed.set()

    def release(self) -> None:
        """Let go, and break off what the run's thread waits for."""
        with self._lock:
            self._released = True
            interrupt = self._interrupt
        self.closed.set()
        self.disturbed.set()
        if interrupt is not None:
            interrupt()

    def break_stream(self) -> None:
        """Break off what the run's thread waits for, so that it looks at its container again."""
        with self._lock:
            interrupt = self._interrupt if not self._stop_interrupts else None
        if interrupt is not None:
            interrupt()

    def ask_stop(self, reason: StopReason) -> None:
        with self._lock:
            if self.stop_asked is not None:
                return
            self.stop_asked = reason
            interrupt = self._interrupt if self._stop_interrupts else None
        self.disturbed.set()
        if interrupt is not None:
            interrupt()

    def while_pulling(self, interrupt: Interrupt) -> None:
        """What breaks off the pull: a stop request does, and being released."""
        self._set_interrupt(interrupt, stop_interrupts=True)

    def while_following(self, interrupt: Interrupt) -> None:
        """What breaks off the follow: only being released. A stopped container's output is followed to its end."""
        self._set_interrupt(interrupt, stop_interrupts=False)

    def _set_interrupt(self, interrupt: Interrupt, *, stop_interrupts: bool) -> None:
        with self._lock:
            self._interrupt = interrupt
            self._stop_interrupts = stop_interrupts
            too_late = self._released or (stop_interrupts and self.stop_asked is not None)
        if too_late:
            interrupt()
