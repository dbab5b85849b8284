"""What the runs of one task print, read once for all who follow it."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from libs.common.postgres import DATABASE_DOWN
from services.scheduler.log_cursor import Batch, LogCursor
from services.scheduler.log_events import Ending, Event, Position

log = structlog.get_logger()

_RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing came in the time."""


@dataclass(frozen=True, slots=True)
class Behind:
    """What comes next isn't kept any more: read it from the database."""


class Tail:
    """Reads on with a thread of its own while somebody follows, and keeps the latest events for them.

    It waits for hints that something is new, and looks by itself every `poll_seconds`. It reads ahead of the
    fastest follower by half of what it may keep (`keep_bytes`), so that those who keep up are never left behind.
    """

    def __init__(
        self, cursor: LogCursor, *, keep_bytes: Callable[[], int], poll_seconds: Callable[[], float]
    ) -> None:
        self._cursor = cursor
        self._keep_bytes = keep_bytes
        self._poll_seconds = poll_seconds
        self._condition = threading.Condition()
        self._positions: list[Position] = []
        self._events: list[Event] = []
        self._floor = cursor.position
        self._front = cursor.position
        self._kept = 0
        self._unread = 0
        self._ending: Ending | None = None
        self._hinted = False
        self._closed = False
        self.followers = 0
        self._thread = threading.Thread(target=self._run, name="log-tail", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def hint(self) -> None:
        """Something may be new."""
        with self._condition:
            self._hinted = True
            self._condition.notify_all()

    def read_after(self, position: Position, *, seconds: float) -> Batch | Waiting | Behind:
        """The events behind `position`, which was sent, as soon as there are some, within `seconds`."""
        with self._condition:
            self._note_front(position)
            self._condition.wait_for(lambda: self._has_news(position), seconds)
            if position < self._floor:
                return Behind()
            events = self._events[bisect_right(self._positions, position) :]
            if events:
                return Batch(events)
            return Waiting() if self._ending is None else Batch([], ending=self._ending)

    def _has_news(self, position: Position) -> bool:
        is_behind = position < self._floor or (bool(self._positions) and self._positions[-1] > position)
        return is_behind or self._ending is not None or self._closed

    def _note_front(self, position: Position) -> None:
        if position <= self._front:
            return
        self._front = position
        self._unread = sum(len(event.body) for event in self._events[bisect_right(self._positions, position) :])
        self._condition.notify_all()

    def _run(self) -> None:
        while not self._closed and self._ending is None:
            try:
                batch = self._cursor.read()
            except DATABASE_DOWN as error:
                log.warning("log_tail_waits_for_database", error=type(error).__name__)
                self._wait(_RETRY_SECONDS)
                continue
            except Exception:
                log.exception("log_tail_failed")
                self._wait(_RETRY_SECONDS)
                continue
            self._add(batch)
            if not batch.more and batch.ending is None:
                self._wait(self._poll_seconds())

    def _wait(self, seconds: float) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self._hinted or self._closed, seconds)
            self._hinted = False

    def _add(self, batch: Batch) -> None:
        with self._condition:
            for event in batch.events:
                self._events.append(event)
                self._positions.append(event.position)
                self._kept += len(event.body)
                self._unread += len(event.body)
            self._forget()
            self._ending = batch.ending
            self._condition.notify_all()
            # The slowest may be left behind, the fastest never.
            self._condition.wait_for(lambda: self._closed or self._unread <= self._keep_bytes() // 2)

    def _forget(self) -> None:
        spare, count = self._kept - self._keep_bytes(), 0
        while spare > 0 and count < len(self._events):
            spare -= len(self._events[count].body)
            count += 1
        if count == 0:
            return
        self._kept -= sum(len(event.body) for event in self._events[:count])
        self._floor = self._positions[count - 1]
        del self._events[:count]
        del self._positions[:count]
