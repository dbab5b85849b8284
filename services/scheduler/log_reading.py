"""What users do with output: read what is there as text, or follow it as it comes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from libs.common.errors import Invalid, NotFound
from libs.common.postgres import Connection, Pool, on_connection
from libs.common.tokens import Identity
from services.scheduler import log_store
from services.scheduler.log_events import Position, begin_of_attempt, parse_event_id
from services.scheduler.log_follow import Follow, Follows, Wanted
from services.scheduler.log_store import BEFORE_ALL, BEHIND_ALL, LogPage
from services.scheduler.log_text import LineStamps, find_last_lines
from services.scheduler.states import TERMINAL_TASK, LogStream
from services.scheduler.visibility import no_such_task, require_visible

_PAGE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which output: of one attempt, or the last (None); of which streams; all lines (None), or the last `tail`."""

    attempt: int | None = None
    streams: Sequence[LogStream] = tuple(LogStream)
    tail: int | None = None


class LogReading:
    """The use cases of the log API. NotFound for another user's task, and for an attempt that isn't there."""

    def __init__(self, *, pool: Pool, follows: Follows) -> None:
        self._pool = pool
        self._follows = follows

    def read_text(
        self, identity: Identity, task_id: UUID, selection: Selection, *, timestamps: bool
    ) -> Iterator[bytes]:
        """What is stored of it now, byte for byte, in pieces; nothing before the task's first attempt."""

        def find(connection: Connection) -> UUID | None:
            require_visible(connection, identity, task_id)
            run_id = log_store.find_run_of_attempt(connection, task_id, selection.attempt)
            if run_id is None and selection.attempt is not None:
                raise _no_such_attempt(selection.attempt)
            return run_id

        run_id = on_connection(self._pool, find)
        if run_id is None or selection.tail == 0:
            return iter(())
        after, skip = self._find_start(run_id, selection)
        # The first page is read before the answer begins, so that an error still has its status.
        first = self._read_page(run_id, after, selection.streams)
        return self._list_pieces(run_id, first, selection.streams, skip=skip, timestamps=timestamps)

    def follow(
        self, identity: Identity, task_id: UUID, selection: Selection, *, last_event_id: int | None
    ) -> Follow:
        """A stream of events, from the event after `last_event_id` if there is one; close it in the end."""

        def find(connection: Connection) -> Position:
            require_visible(connection, identity, task_id)
            return _find_position(connection, task_id, selection.attempt, last_event_id)

        position = on_connection(self._pool, find)
        skip = 0
        if selection.tail is not None and last_event_id is None:
            position, skip = self._find_tail_position(task_id, position, selection)
        return self._follows.open(
            Wanted(
                user_id=identity.user_id,
                task_id=task_id,
                position=position,
                attempt=selection.attempt,
                streams=selection.streams,
                skip_bytes=skip,
            )
        )

    def _find_tail_position(self, task_id: UUID, position: Position, selection: Selection) -> tuple[Position, int]:
        run_id = on_connection(
            self._pool,
            lambda connection: log_store.find_run_of_attempt(connection, task_id, position.number),
        )
        if run_id is None:
            return position, 0
        after, skip = self._find_start(run_id, selection)
        return Position(position.number, after), skip

    def _find_start(self, run_id: UUID, selection: Selection) -> tuple[int, int]:
        """Behind which chunk the wanted lines begin, and how much of the next one comes before them."""
        if selection.tail is None:
            return BEFORE_ALL, 0
        backwards = self._list_backwards(run_id, selection.streams)
        if selection.tail == 0:
            newest = next(backwards, None)
            return (BEFORE_ALL if newest is None else newest[0]), 0
        found = find_last_lines(backwards, selection.tail)
        return (BEFORE_ALL, 0) if found is None else (found[0] - 1, found[1])

    def _list_backwards(self, run_id: UUID, streams: Sequence[LogStream]) -> Iterator[tuple[int, bytes]]:
        before = BEHIND_ALL
        while True:
            page = self._read_page_backwards(run_id, before, streams)
            for chunk in page.chunks:
                yield chunk.seq, chunk.data
                before = chunk.seq
            if page.is_last:
                return

    def _list_pieces(
        self, run_id: UUID, page: LogPage, streams: Sequence[LogStream], *, skip: int, timestamps: bool
    ) -> Iterator[bytes]:
        stamps = LineStamps() if timestamps else None
        while True:
            piece = bytearray()
            for chunk in page.chunks:
                data, skip = chunk.data[skip:], 0
                piece += data if stamps is None else stamps.stamp(chunk.stream, chunk.at, data)
            if piece:
                yield bytes(piece)
            if page.is_last:
                return
            page = self._read_page(run_id, page.chunks[-1].seq, streams)

    def _read_page(self, run_id: UUID, after: int, streams: Sequence[LogStream]) -> LogPage:
        return on_connection(
            self._pool,
            lambda connection: log_store.list_log_page(
                connection, run_id, after=after, budget_bytes=_PAGE_BYTES, streams=streams
            ),
        )

    def _read_page_backwards(self, run_id: UUID, before: int, streams: Sequence[LogStream]) -> LogPage:
        return on_connection(
            self._pool,
            lambda connection: log_store.list_log_page_backwards(
                connection, run_id, before=before, budget_bytes=_PAGE_BYTES, streams=streams
            ),
        )


def _find_position(
    connection: Connection, task_id: UUID, attempt: int | None, last_event_id: int | None
) -> Position:
    """Where a stream begins. NotFound for an attempt that will never be, Invalid for an id of something else."""
    last = log_store.find_last_attempt(connection, task_id) or 0
    if attempt is not None and attempt > last:
        _require_unfinished(connection, task_id, attempt)
    if last_event_id is None:
        return begin_of_attempt(attempt or last or 1)
    sent = parse_event_id(last_event_id)
    if sent.number > last:
        message = "Must be the id of an event of this task's output."
        raise Invalid("The request has invalid fields; see errors.", errors={"Last-Event-ID": [message]})
    if attempt is not None and sent.number != attempt:
        begin = begin_of_attempt(attempt)
        sent = begin if sent < begin else begin.end_of_attempt()
    # Behind the last chunk there is only what the end of the attempt adds.
    return min(sent, Position(sent.number, _find_last_seq(connection, task_id, sent.number)))


def _require_unfinished(connection: Connection, task_id: UUID, attempt: int) -> None:
    progress = log_store.read_progress(connection, task_id, number=attempt)
    if progress is None:
        raise no_such_task()
    if progress.number is None and progress.task_status in TERMINAL_TASK:
        raise _no_such_attempt(attempt)


def _find_last_seq(connection: Connection, task_id: UUID, attempt: int) -> int:
    run_id = log_store.find_run_of_attempt(connection, task_id, attempt)
    if run_id is None:
        return BEFORE_ALL
    page = log_store.list_log_page_backwards(connection, run_id, before=BEHIND_ALL, budget_bytes=1)
    return page.chunks[0].seq if page.chunks else BEFORE_ALL


def _no_such_attempt(number: int) -> NotFound:
    return NotFound(f"The task has no attempt {number}.")
