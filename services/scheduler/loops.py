"""Runs loops in threads: one pass after the other, whatever a pass dies of."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta

import structlog

from libs.common.postgres import DATABASE_DOWN, Pool
from services.scheduler import run_store
from services.scheduler.loop_metrics import LOOP_FAILURES

log = structlog.get_logger()

_FAILURE_PAUSE = timedelta(seconds=1)
_BEAT_SECONDS = 5.0
_STUCK_SECONDS = 120.0


class LoopThread:
    """Calls `run_once` again and again. It returns how long to wait; `wait` may be cut short, also by `stop`.

    Every few seconds it notes in the database that the loop is at work.
    """

    def __init__(
        self, *, name: str, run_once: Callable[[], timedelta], wait: Callable[[timedelta], None], pool: Pool
    ) -> None:
        self.name = name
        self._run_once = run_once
        self._wait = wait
        self._pool = pool
        self._stopping = threading.Event()
        self._started_at = time.monotonic()
        self._passed_at: float | None = None
        self._succeeded_at: float | None = None
        self._beaten_at = float("-inf")
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ask_to_stop(self) -> None:
        """The pass in hand is the last one. Wake whatever `wait` waits on after this."""
        self._stopping.set()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    @property
    def is_alive(self) -> bool:
        """Whether passes still come to an end, good or bad."""
        last = self._passed_at or self._started_at
        return self._thread.is_alive() and time.monotonic() - last < _STUCK_SECONDS

    def check(self) -> dict[str, float]:
        """For `/readyz`: how long ago the last good pass was. Raises when there was none lately."""
        if self._succeeded_at is None:
            raise LookupError("no pass has succeeded yet")
        age = round(time.monotonic() - self._succeeded_at, 1)
        if age > _STUCK_SECONDS / 4:
            raise LookupError(f"the last good pass was {age} s ago")
        return {"secondsSinceLastSuccess": age}

    def _run(self) -> None:
        while not self._stopping.is_set():
            pause = self._pass()
            if not self._stopping.is_set() and pause > timedelta(0):
                self._wait(pause)

    def _pass(self) -> timedelta:
        try:
            pause = self._run_once()
            self._beat()
            self._succeeded_at = time.monotonic()
        except DATABASE_DOWN as error:
            log.warning("loop_waits_for_database", loop=self.name, error=type(error).__name__)
            pause = self._note_failure()
        except Exception:
            log.exception("loop_failed", loop=self.name)
            pause = self._note_failure()
        self._passed_at = time.monotonic()
        return pause

    def _beat(self) -> None:
        if time.monotonic() - self._beaten_at < _BEAT_SECONDS:
            return
        with self._pool.connection() as connection:
            run_store.beat(connection, self.name)
        self._beaten_at = time.monotonic()

    def _note_failure(self) -> timedelta:
        LOOP_FAILURES.labels(self.name).inc()
        return _FAILURE_PAUSE
