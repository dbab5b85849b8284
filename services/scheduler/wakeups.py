"""The hints that the scheduler gives: to its dispatch loop, which also looks every second, and to executors."""

from __future__ import annotations

from collections.abc import Collection

from libs.common.hints import STOP_CHANNEL, HintSender

DISPATCH_CHANNEL = "dispatch:wake"


class Waker:
    """None of its methods but `ping` and `close` waits for Redis."""

    def __init__(self, url: str) -> None:
        self._hints = HintSender(url)

    def wake(self) -> None:
        """Something is due, or there is room."""
        self._hints.send(DISPATCH_CHANNEL)

    def hint_stop(self, executor_ids: Collection[str]) -> None:
        """These executors have something to stop, and hear what it is in their next sync."""
        for executor_id in executor_ids:
            self._hints.send(STOP_CHANNEL, executor_id)

    def ping(self) -> None:
        """Raise when Redis doesn't answer; for `/readyz`."""
        self._hints.ping()

    def close(self) -> None:
        self._hints.close()
