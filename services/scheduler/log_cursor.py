"""Reads a task's output from a position on, attempt after attempt, as events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from libs.common.postgres import Connection, Pool, on_connection
from services.scheduler import log_store
from services.scheduler.log_events import Ending, Event, EventEncoder, Position, begin_of_attempt
from services.scheduler.log_store import LogPage, Progress
from services.scheduler.states import TERMINAL_RUN, TERMINAL_TASK

# A task that is deleted while it is followed.
DELETED = Ending("deleted")


@dataclass(frozen=True, slots=True)
class Batch:
    """`more`: read again at once. `ending`: nothing will ever follow."""

    events: Sequence[Event]
    more: bool = False
    ending: Ending | None = None


class LogCursor:
    """One reader's place in a task's output; for one thread.

    `skip_bytes` of the first chunk behind the position aren't shown (the rest of an earlier line).
    """

    def __init__(self, pool: Pool, task_id: UUID, *, position: Position, budget_bytes: int, skip_bytes: int = 0):
        self._pool = pool
        self._task_id = task_id
        self._position = position
        self._budget_bytes = budget_bytes
        self._skip_bytes = skip_bytes
        self._encoder: EventEncoder | None = None

    @property
    def position(self) -> Position:
        return self._position

    def read(self) -> Batch:
        """What is there behind the position, within the budget. DATABASE_DOWN when nobody can say."""
        progress, page = on_connection(self._pool, self._fetch)
        if progress is None:
            return Batch([], ending=DELETED)
        if progress.number is None:
            return Batch([], ending=_end_of_task(progress, self._position.number - 1))
        events = self._encode(progress.number, page)
        if progress.run_status not in TERMINAL_RUN or not page.is_last:
            return Batch(events, more=not page.is_last)
        return Batch([*events, *self._end_attempt(progress)], more=True)

    def _fetch(self, connection: Connection) -> tuple[Progress | None, LogPage]:
        # In this order: when the run has ended by now, all of its output is there to be read next.
        progress = log_store.read_progress(connection, self._task_id, number=self._position.number)
        if progress is None or progress.run_id is None or progress.number is None:
            return progress, LogPage([], is_last=True)
        if progress.number > self._position.number:
            self._move(begin_of_attempt(progress.number))
        if self._encoder is None:
            ends = log_store.read_log_ends(connection, progress.run_id, until=self._position.seq)
            self._encoder = EventEncoder(progress.number, ends)
        page = log_store.list_log_page(
            connection, progress.run_id, after=self._position.seq, budget_bytes=self._budget_bytes
        )
        return progress, page

    def _encode(self, number: int, page: LogPage) -> list[Event]:
        events = []
        for chunk in page.chunks:
            data, self._skip_bytes = chunk.data[self._skip_bytes :], 0
            event = self._get_encoder(number).encode(chunk.seq, chunk.stream, chunk.at, data)
            if event is not None:
                events.append(event)
            self._position = Position(number, chunk.seq)
        return events

    def _end_attempt(self, progress: Progress) -> list[Event]:
        number = self._position.number
        rest = self._get_encoder(number).flush()
        mark = Event(self._position.end_of_attempt(), None, b"", ending=_end_of_run(progress))
        self._move(begin_of_attempt(number + 1))
        return [*rest, mark]

    def _get_encoder(self, number: int) -> EventEncoder:
        if self._encoder is None:
            self._encoder = EventEncoder(number)
        return self._encoder

    def _move(self, position: Position) -> None:
        self._position = position
        self._encoder = None
        self._skip_bytes = 0


def _end_of_run(progress: Progress) -> Ending:
    return Ending(str(progress.run_status), progress.run_reason, progress.run_exit_code, progress.number)


def _end_of_task(progress: Progress, last_number: int) -> Ending | None:
    if progress.task_status not in TERMINAL_TASK:
        return None
    attempt = last_number if last_number > 0 else None
    return Ending(progress.task_status, progress.task_reason, progress.task_exit_code, attempt)
