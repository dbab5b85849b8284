"""Orderly stop: the first SIGTERM or SIGINT asks, the second leaves at once. And servers that stop themselves."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

_WATCH_SECONDS = 0.2


def call_on_stop(stop: Callable[[], None]) -> None:
    """Have `stop` called, in a thread of its own, when a server that handles SIGTERM itself is told to stop.

    Call from the main thread, after the server has set its handler (gunicorn: while the app is made).
    """
    former = signal.getsignal(signal.SIGTERM)
    asked: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        # Nothing that might wait, not even for a lock: under gevent this runs inside its event loop.
        asked.append(number)
        if callable(former):
            former(number, frame)

    def watch() -> None:
        while not asked:
            time.sleep(_WATCH_SECONDS)
        stop()

    threading.Thread(target=watch, name="stop-watch", daemon=True).start()
    signal.signal(signal.SIGTERM, handle)
    # As gunicorn has it: requests under way go on.
    signal.siginterrupt(signal.SIGTERM, False)


class Shutdown:
    """Set once when the process was asked to stop; loops wait on it instead of sleeping."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def install(self) -> None:
        """Handle SIGTERM and SIGINT. Call from the main thread."""
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)

    def ask(self) -> None:
        self._asked.set()

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    def wait(self, seconds: float | None = None) -> bool:
        """True as soon as the stop was asked, False after `seconds` without."""
        return self._asked.wait(seconds)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            os._exit(1)
        self.ask()
