"""Followers of tasks' output: many of one task share one reading of it (docs/output.md)."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

import structlog

from libs.common.errors import TooManyRequests, Unavailable
from libs.common.postgres import DATABASE_DOWN, Pool
from services.scheduler.log_cursor import Batch, LogCursor
from services.scheduler.log_events import KEEP_ALIVE, OPENING, Ending, Event, Position, render_end
from services.scheduler.log_metrics import CATCH_UPS, FOLLOWED_BYTES, FOLLOWERS
from services.scheduler.log_tail import Behind, Tail, Waiting
from services.scheduler.states import LogStream

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowLimits:
    """`keep_bytes`: of all tails together, kept for those who follow. `page_bytes`: read and sent at a time.

    `keep_alive_seconds` is also how often whoever passes the stream on has an occasion to end it.
    """

    followers: int = 800
    followers_of_user: int = 200
    keep_bytes: int = 64 * 1024 * 1024
    keep_bytes_of_task: int = 12 * 1024 * 1024
    page_bytes: int = 64 * 1024
    keep_alive_seconds: float = 5.0
    # With hints a look at the clock finds only what no hint tells of, such as a task that is cancelled early.
    poll_seconds: float = 2.0
    poll_seconds_without_hints: float = 0.5
    database_pause_seconds: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What one follower wants: from `position` on; only that `attempt`, or the task's all; on these streams.

    `skip_bytes`: so much of the first chunk belongs to an earlier line.
    """

    user_id: UUID
    task_id: UUID
    position: Position
    attempt: int | None = None
    streams: Sequence[LogStream] = tuple(LogStream)
    skip_bytes: int = 0


class Follows:
    """All follows of this process. `has_hints` says whether hints are heard at the moment."""

    def __init__(self, *, pool: Pool, limits: FollowLimits, has_hints: Callable[[], bool]) -> None:
        self.pool = pool
        self.limits = limits
        self._has_hints = has_hints
        self._lock = threading.Lock()
        self._tails: dict[UUID, Tail] = {}
        self._by_user: Counter[UUID] = Counter()
        self._stopping = threading.Event()

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    def open(self, wanted: Wanted) -> Follow:
        """The stream; close it in the end. TooManyRequests when the user has too many, Unavailable when all do."""
        with self._lock:
            if self._by_user[wanted.user_id] >= self.limits.followers_of_user:
                raise TooManyRequests(
                    f"You follow {self.limits.followers_of_user} outputs already; end one first.",
                    code="too_many_follows",
                    retry_after_seconds=5,
                )
            if self._by_user.total() >= self.limits.followers or self.is_stopping:
                raise Unavailable("Too many outputs are followed just now. Try again.", retry_after_seconds=5)
            self._by_user[wanted.user_id] += 1
            tail = self._tails.get(wanted.task_id) or self._start_tail(wanted)
            tail.followers += 1
        FOLLOWERS.inc()
        return Follow(self, wanted, tail)

    def leave(self, wanted: Wanted, tail: Tail) -> None:
        with self._lock:
            self._by_user[wanted.user_id] -= 1
            if self._by_user[wanted.user_id] == 0:
                del self._by_user[wanted.user_id]
            tail.followers -= 1
            if tail.followers == 0:
                del self._tails[wanted.task_id]
                tail.close()
        FOLLOWERS.dec()

    def hint(self, task_id: UUID) -> None:
        """Something about that task may be new."""
        tail = self._tails.get(task_id)
        if tail is not None:
            tail.hint()

    def hint_all(self) -> None:
        """Hints may have been missed."""
        with self._lock:
            tails = list(self._tails.values())
        for tail in tails:
            tail.hint()

    def stop(self) -> None:
        """End all follows without an `end`: their clients come back, to another process."""
        self._stopping.set()
        with self._lock:
            tails = list(self._tails.values())
        for tail in tails:
            tail.close()

    def pause(self, seconds: float) -> None:
        """Wait, but for no stop."""
        self._stopping.wait(seconds)

    def _start_tail(self, wanted: Wanted) -> Tail:
        cursor = LogCursor(
            self.pool, wanted.task_id, position=wanted.position, budget_bytes=self.limits.page_bytes * 4
        )
        tail = Tail(cursor, keep_bytes=self._share, poll_seconds=self._decide_poll)
        self._tails[wanted.task_id] = tail
        tail.start()
        return tail

    def _share(self) -> int:
        return min(self.limits.keep_bytes_of_task, self.limits.keep_bytes // max(len(self._tails), 1))

    def _decide_poll(self) -> float:
        return self.limits.poll_seconds if self._has_hints() else self.limits.poll_seconds_without_hints


class Follow(Iterator[bytes]):
    """One follower's stream. It holds no more than one piece: who reads slowly is waited for, not stored for."""

    def __init__(self, follows: Follows, wanted: Wanted, tail: Tail) -> None:
        self._follows = follows
        self._wanted = wanted
        self._tail = tail
        self._position = wanted.position
        self._catch_up = self._make_cursor(wanted.skip_bytes) if wanted.skip_bytes else None
        self._pieces = self._stream()
        self._lock = threading.Lock()
        self._closed = False

    def __next__(self) -> bytes:
        piece = next(self._pieces)
        FOLLOWED_BYTES.inc(len(piece))
        return piece

    def close(self) -> None:
        """However it ended; the server calls it also for a stream of which nothing was ever sent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._follows.leave(self._wanted, self._tail)

    def _stream(self) -> Iterator[bytes]:
        yield OPENING
        while not self._follows.is_stopping:
            batch = self._read()
            if batch is None:
                yield KEEP_ALIVE
                continue
            yield from self._join(batch.events)
            ending = self._find_ending(batch)
            if ending is not None:
                yield render_end(ending)
                return

    def _read(self) -> Batch | None:
        """What comes next; None when nothing came for a while."""
        if self._catch_up is None:
            batch = self._tail.read_after(self._position, seconds=self._follows.limits.keep_alive_seconds)
            if isinstance(batch, Waiting):
                return None
            if isinstance(batch, Batch):
                return batch
            CATCH_UPS.inc()
            self._catch_up = self._make_cursor()
        return self._read_alone(self._catch_up)

    def _read_alone(self, cursor: LogCursor) -> Batch | None:
        limits = self._follows.limits
        try:
            batch = cursor.read()
        except DATABASE_DOWN as error:
            log.warning("follow_waits_for_database", error=type(error).__name__)
            self._follows.pause(limits.database_pause_seconds)
            return None
        self._position = cursor.position
        if not isinstance(self._tail.read_after(self._position, seconds=0), Behind):
            self._catch_up = None
        elif not batch.events and not batch.more:
            self._follows.pause(limits.poll_seconds_without_hints)
        return batch

    def _make_cursor(self, skip_bytes: int = 0) -> LogCursor:
        return LogCursor(
            self._follows.pool,
            self._wanted.task_id,
            position=self._position,
            budget_bytes=self._follows.limits.page_bytes,
            skip_bytes=skip_bytes,
        )

    def _join(self, events: Sequence[Event]) -> Iterator[bytes]:
        """The wanted ones' bodies, small ones put together."""
        gathered: list[bytes] = []
        size = 0
        for event in events:
            if self._is_wanted(event):
                gathered.append(event.body)
                size += len(event.body)
            if size >= self._follows.limits.page_bytes:
                yield b"".join(gathered)
                gathered, size = [], 0
            self._position = max(self._position, event.position)
        if gathered:
            yield b"".join(gathered)

    def _is_wanted(self, event: Event) -> bool:
        return event.stream in self._wanted.streams and self._wanted.attempt in (None, event.position.number)

    def _find_ending(self, batch: Batch) -> Ending | None:
        if self._wanted.attempt is not None:
            for event in batch.events:
                if event.ending is not None and event.position.number >= self._wanted.attempt:
                    return event.ending
        return batch.ending
