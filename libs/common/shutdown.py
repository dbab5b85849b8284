"""Orderly stop: the first SIGTERM or SIGINT asks, the second leaves at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType


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
