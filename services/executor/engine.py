"""Watches the engine, and makes it ready: the task network, and the guard around it, also after it was away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import structlog

from libs.common.clock import utc_now
from services.executor.network_guard import NetworkGuard
from services.executor.runtime import EngineInfo, EngineUnavailable, Runtime, RuntimeFailure

log = structlog.get_logger()

LOOK_SECONDS = 15.0
FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 5.0

# A firewall that is reloaded forgets the guard's rules, and nobody tells.
GUARD_AGAIN_SECONDS = 300.0


class EngineMonitor:
    """`up` means that the engine answers, `ready` that the guarded network is there too.

    One thread, with its own connection. `on_change` is called after either has changed.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        guard: NetworkGuard,
        on_change: Callable[[], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runtime = runtime
        self._guard = guard
        self._on_change = on_change
        self._monotonic = monotonic
        self._guarded_at = float("-inf")
        self._up = threading.Event()
        self._ready = threading.Event()
        self._look = threading.Event()
        self._info: EngineInfo | None = None
        # The engine's time, and when (monotonic) it was that.
        self._clock: tuple[datetime, float] | None = None
        self._problem = "not looked at yet"

    @property
    def ready(self) -> bool:
        return self._ready.is_set()

    @property
    def info(self) -> EngineInfo | None:
        """What the engine said of itself when it last answered."""
        return self._info

    def now(self) -> datetime:
        """The engine's time, whatever this machine's clock says; this one's before the engine has told it."""
        clock = self._clock
        if clock is None:
            return utc_now()
        told, at = clock
        return told + timedelta(seconds=self._monotonic() - at)

    def lost(self, error: EngineUnavailable) -> None:
        """A call wasn't answered: nothing new begins until the engine has been looked at."""
        self._problem = str(error)
        self._up.clear()
        self._ready.clear()
        self._look.set()
        self._on_change()

    def wait_up(self, seconds: float) -> bool:
        return self._up.wait(seconds)

    def wait_info(self, seconds: float) -> EngineInfo | None:
        """The engine's name for itself, None when it hasn't answered within `seconds`."""
        self._up.wait(seconds)
        return self._info

    def probe(self) -> dict[str, Any]:
        """For `/readyz`: raises when the engine can't be used."""
        if not self.ready or self._info is None:
            raise EngineUnavailable(self._problem)
        return {"version": self._info.version, "engineId": self._info.engine_id}

    def run(self) -> None:
        pause = FIRST_RETRY_SECONDS
        while True:
            self._look.clear()
            if self.run_once():
                pause = FIRST_RETRY_SECONDS
                self._look.wait(LOOK_SECONDS)
            else:
                self._look.wait(pause)
                pause = min(LAST_RETRY_SECONDS, pause * 2)

    def run_once(self) -> bool:
        """Look at the engine, and make it ready unless it is. False when it isn't now."""
        try:
            self._info = self._runtime.describe()
            self._clock = self._info.now, self._monotonic()
            self._up.set()
            if not self.ready or self._monotonic() - self._guarded_at > GUARD_AGAIN_SECONDS:
                self._guard.apply(self._runtime)
                self._guarded_at = self._monotonic()
            if not self.ready:
                self._ready.set()
                self._on_change()
                log.info("engine_ready", engine_id=self._info.engine_id, version=self._info.version)
        except (EngineUnavailable, RuntimeFailure) as error:
            self._fail(error)
        except Exception as error:
            log.exception("engine_monitor_broken")
            self._fail(error)
        return self.ready

    def _fail(self, error: Exception) -> None:
        self._problem = str(error)
        if isinstance(error, EngineUnavailable):
            self._up.clear()
        self._ready.clear()
        self._on_change()
        log.warning("engine_not_ready", error=str(error))
