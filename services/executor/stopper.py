"""Sends signals to containers whose time is up or whose stop was asked: SIGTERM, the grace, SIGKILL."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import structlog

from libs.common.clock import utc_now
from services.executor.held_run import HeldRun
from services.executor.outcome import StopReason
from services.executor.runtime import EngineUnavailable, Runtime, RuntimeFailure

log = structlog.get_logger()

# A signal that the engine refused or couldn't deliver is sent again after this; so is a SIGKILL without effect.
RETRY_SECONDS = 1.0
KILL_AGAIN_SECONDS = 5.0
IDLE_SECONDS = 60.0


@dataclass(slots=True)
class _Watched:
    """Monotonic times; `terminated_at` and `killed_at` are None until the signal was delivered."""

    run: HeldRun
    container_id: str
    deadline: float
    terminated_at: float | None = None
    killed_at: float | None = None
    retry_at: float = 0.0
    ended: bool = False
    sending: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, slots=True)
class Step:
    """The signal that is due at `at` (monotonic), and why the run is stopped."""

    at: float
    signal: Literal["SIGTERM", "SIGKILL"]
    reason: StopReason


def decide_step(
    *,
    stop_asked: StopReason | None,
    deadline: float,
    grace_seconds: float,
    terminated_at: float | None,
    killed_at: float | None,
    stopped_for: StopReason | None,
) -> Step:
    """The next signal for one container. Pure."""
    if terminated_at is None:
        if stop_asked is not None:
            return Step(0.0, "SIGTERM", stop_asked)
        return Step(deadline, "SIGTERM", "timeout")
    reason = stopped_for or stop_asked or "timeout"
    if killed_at is None:
        return Step(terminated_at + grace_seconds, "SIGKILL", reason)
    return Step(killed_at + KILL_AGAIN_SECONDS, "SIGKILL", reason)


class Stopper:
    """One thread with its own connection to the engine, because the slots' threads are busy following."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._condition = threading.Condition()
        self._watched: dict[tuple[str, int], _Watched] = {}
        self._woken = False

    def watch(self, run: HeldRun, *, container_id: str, started_at: datetime) -> None:
        """Stop the container when the run's limit, counted from `started_at`, is over, or when asked."""
        used = max(0.0, (utc_now() - started_at).total_seconds())
        deadline = time.monotonic() + run.spec.time_limit.total_seconds() - used
        with self._condition:
            self._watched[run.key] = _Watched(run=run, container_id=container_id, deadline=deadline)
            if run.stop_asked is not None or self._is_next(deadline):
                self._wake()

    def unwatch(self, run: HeldRun) -> None:
        """From here on the run gets no signal; waits for one that is on its way, so `stopped_for` is final."""
        with self._condition:
            watched = self._watched.pop(run.key, None)
        if watched is not None:
            with watched.sending:
                watched.ended = True

    def wake(self) -> None:
        """A stop was asked: look at all runs now."""
        with self._condition:
            self._wake()

    def run(self) -> None:
        while True:
            try:
                pause = self.run_once()
            except Exception:
                log.exception("stopper_broken")
                pause = RETRY_SECONDS
            with self._condition:
                self._condition.wait_for(lambda: self._woken, pause)
                self._woken = False

    def run_once(self) -> float:
        """Send what is due. Seconds until the next look."""
        with self._condition:
            watched = list(self._watched.values())
        dues = [self._advance(each) for each in watched]
        return max(0.0, min([IDLE_SECONDS, *(due - time.monotonic() for due in dues)]))

    def _is_next(self, deadline: float) -> bool:
        return deadline - time.monotonic() < IDLE_SECONDS

    def _wake(self) -> None:
        self._woken = True
        self._condition.notify()

    def _advance(self, watched: _Watched) -> float:
        """Do the due step of one run; when its next one is due."""
        step = self._decide(watched)
        if max(step.at, watched.retry_at) > time.monotonic():
            return max(step.at, watched.retry_at)
        with watched.sending:
            if not watched.ended:
                self._signal(watched, step)
        return max(self._decide(watched).at, watched.retry_at)

    def _decide(self, watched: _Watched) -> Step:
        return decide_step(
            stop_asked=watched.run.stop_asked,
            deadline=watched.deadline,
            grace_seconds=watched.run.spec.stop_grace.total_seconds(),
            terminated_at=watched.terminated_at,
            killed_at=watched.killed_at,
            stopped_for=watched.run.stopped_for,
        )

    def _signal(self, watched: _Watched, step: Step) -> None:
        run = watched.run
        if run.released:
            watched.retry_at = time.monotonic() + IDLE_SECONDS
            return
        try:
            delivered = self._runtime.kill(watched.container_id, step.signal)
        except (EngineUnavailable, RuntimeFailure) as error:
            log.warning("signal_failed", **run.log_ids, signal=step.signal, error=str(error))
            delivered = False
        now = time.monotonic()
        if not delivered:
            # It ended by itself just now, and its thread is about to notice.
            watched.retry_at = now + RETRY_SECONDS
            return
        log.info("signal_sent", **run.log_ids, signal=step.signal, reason=step.reason)
        run.stopped_for = run.stopped_for or step.reason
        if step.signal == "SIGTERM":
            watched.terminated_at = now
        else:
            watched.killed_at = now
            run.was_killed = True
