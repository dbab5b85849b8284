"""The hints that the scheduler gives: to its dispatch loop, which also looks every second, and to executors."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from libs.common.hints import STOP_CHANNEL, HintSender

DISPATCH_CHANNEL = "dispatch:wake"
# To who serves output: the text is the id of a task that printed something, or went on.
OUTPUT_CHANNEL = "tasks:output"


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

    def hint_output(self, task_ids: Collection[UUID]) -> None:
        """Who follows these tasks has something to read."""
        for task_id in task_ids:
            self._hints.send(OUTPUT_CHANNEL, str(task_id))

    def ping(self) -> None:
        """Raise when Redis doesn't answer; for `/readyz`."""
        self._hints.ping()

    def close(self) -> None:
        self._hints.close()
