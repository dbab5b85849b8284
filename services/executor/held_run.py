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
        self.key = (str(spec.run_id), epoch)
        self._settled = False
        self._released = False
        self._renewed_at = renewed_at
        self._clock = clock
        # Notified when the run is closed, and when a stop is asked.
        self._changed = threading.Condition()
        self._interrupt: Interrupt | None = None
        self._stop_interrupts = False

    @property
    def log_ids(self) -> dict[str, Any]:
        return {
            "task_id": str(self.spec.task_id),
            "run_id": self.key[0],
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

    @property
    def closed(self) -> bool:
        """Settled or released: the run's thread has nothing to wait for any more."""
        return self._settled or self._released

    def wait_closed(self, seconds: float | None = None) -> bool:
        """Whether it was closed within so many seconds; None: however long that takes."""
        with self._changed:
            return self._changed.wait_for(lambda: self.closed, seconds)

    def pause(self, seconds: float) -> None:
        """Before another try; cut short when the run is closed or a stop is asked."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed or self.stop_asked is not None, seconds)

    def settle(self) -> None:
        with self._changed:
            self._settled = True
            self._changed.notify_all()

    def release(self) -> None:
        """Let go, and break off what the run's thread waits for."""
        with self._changed:
            self._released = True
            interrupt = self._interrupt
            self._changed.notify_all()
        if interrupt is not None:
            interrupt()

    def break_stream(self) -> None:
        """Break off what the run's thread waits for, so that it looks at its container again."""
        with self._changed:
            interrupt = self._interrupt if not self._stop_interrupts else None
        if interrupt is not None:
            interrupt()

    def ask_stop(self, reason: StopReason) -> None:
        with self._changed:
            if self.stop_asked is not None:
                return
            self.stop_asked = reason
            interrupt = self._interrupt if self._stop_interrupts else None
            self._changed.notify_all()
        if interrupt is not None:
            interrupt()

    def while_pulling(self, interrupt: Interrupt) -> None:
        """What breaks off the pull: a stop request does, and being released."""
        self._set_interrupt(interrupt, stop_interrupts=True)

    def while_following(self, interrupt: Interrupt) -> None:
        """What breaks off the follow: only being released. A stopped container's output is followed to its end."""
        self._set_interrupt(interrupt, stop_interrupts=False)

    def _set_interrupt(self, interrupt: Interrupt, *, stop_interrupts: bool) -> None:
        with self._changed:
            self._interrupt = interrupt
            self._stop_interrupts = stop_interrupts
            too_late = self._released or (stop_interrupts and self.stop_asked is not None)
        if too_late:
            interrupt()
