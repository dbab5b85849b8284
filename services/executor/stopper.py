"""Sends signals to containers whose time is up or whose stop was asked: SIGTERM, the grace, SIGKILL."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

import structlog

from libs.common import failpoints
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
    """Monotonic times; `terminated_at` and `killed_at` are None until the signal was surely delivered.

    `doubted_at` is when a signal was first sent that may have been delivered, and may not.
    """

    run: HeldRun
    container_id: str
    deadline: float
    terminated_at: float | None = None
    killed_at: float | None = None
    doubted_at: float | None = None
    retry_at: float = 0.0
    in_flight: bool = False
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


def _in_thread(send: Callable[[], None]) -> None:
    threading.Thread(target=send, name="signal", daemon=True).start()


class Stopper:
    """One thread that sees what is due. Each signal has a thread and a connection of its own, so that an engine
    that is stuck with one container keeps nobody from stopping the others."""

    def __init__(
        self,
        *,
        open_runtime: Callable[[], Runtime],
        spawn: Callable[[Callable[[], None]], None] = _in_thread,
    ) -> None:
        self._open_runtime = open_runtime
        self._spawn = spawn
        self._condition = threading.Condition()
        self._watched: dict[tuple[str, int], _Watched] = {}
        self._woken = False

    def watch(self, run: HeldRun, *, container_id: str, ran_for: timedelta) -> None:
        """Stop the container, which has run for some time already, when the run's limit is over, or when asked."""
        left = run.spec.time_limit - max(ran_for, timedelta(0))
        deadline = time.monotonic() + left.total_seconds()
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
        if not watched.in_flight:
            watched.in_flight = True
            self._spawn(functools.partial(self._send, watched, step))
        if watched.in_flight:
            # The next look is when it has been sent.
            return time.monotonic() + IDLE_SECONDS
        return max(self._decide(watched).at, watched.retry_at)

    def _send(self, watched: _Watched, step: Step) -> None:
        try:
            with watched.sending:
                if not watched.ended:
                    self._signal(watched, step)
        except Exception:
            log.exception("signal_broken", **watched.run.log_ids)
            watched.retry_at = time.monotonic() + RETRY_SECONDS
        finally:
            watched.in_flight = False
            self.wake()

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
        failpoints.reach("signal_not_sent")
        with closing(self._open_runtime()) as runtime:
            delivered = self._kill(runtime, watched, step.signal)
            if delivered is None and self._is_doubted_too_long(watched):
                self._kill(runtime, watched, "SIGKILL")
        now = time.monotonic()
        if delivered is None:
            watched.doubted_at = watched.doubted_at or now
        if delivered is not False:
            # Also when the answer was lost: it ends, or is about to, because of us.
            run.stopped_for = run.stopped_for or step.reason
        if not delivered:
            # If it isn't in doubt, it ended by itself just now, and its thread is about to notice.
            watched.retry_at = now + RETRY_SECONDS
            return
        log.info("signal_sent", **run.log_ids, signal=step.signal, reason=step.reason)
        if step.signal == "SIGTERM":
            watched.terminated_at = now
        else:
            watched.killed_at = now
            run.was_killed = True

    def _kill(self, runtime: Runtime, watched: _Watched, signal: str) -> bool | None:
        """None when the signal may have been delivered or not."""
        try:
            return runtime.kill(watched.container_id, signal)
        except (EngineUnavailable, RuntimeFailure) as error:
            log.warning("signal_failed", **watched.run.log_ids, signal=signal, error=str(error))
            return None

    def _is_doubted_too_long(self, watched: _Watched) -> bool:
        """The grace is over for a SIGTERM of which the engine never says that it was delivered."""
        grace = watched.run.spec.stop_grace.total_seconds()
        return watched.doubted_at is not None and time.monotonic() - watched.doubted_at >= grace
