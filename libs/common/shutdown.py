"""Orderly stop: the first SIGTERM or SIGINT asks, the second leaves at once. And servers that stop themselves."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType


def call_on_stop(stop: Callable[[], None]) -> None:
    """Have `stop` called, in a thread of its own, when a server that handles SIGTERM itself is told to stop.

    Call from the main thread, after the server has set its handler (gunicorn: while the app is made).
    """
    former = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        # Not here: what is interrupted may hold a lock that `stop` needs.
        threading.Thread(target=stop, name="stop", daemon=True).start()
        if callable(former):
            former(number, frame)

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
