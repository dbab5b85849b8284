"""A run's output between the engine and the scheduler: chunks to store, and the tail that is the result."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from libs.common.clock import utc_now
from services.executor.runtime import Stream
from services.executor.spec import StoredOutput

CHUNK_BYTES = 64 * 1024
RESULT_BYTES = 64 * 1024
STDERR_TAIL_BYTES = 4 * 1024
CAP_BYTES = 5 * 1024 * 1024
# What a chunk costs besides its bytes. A program that writes to both streams in turn, byte by byte, makes a chunk
# of each byte, and is at its cap the sooner for it.
CHUNK_COST_BYTES = 128
LOSS_MARK = b"\n[output lost here: the executor could not keep it while the scheduler was away]\n"
MISSING_MARK = b"\n[output may be missing here: the container engine did not give all of it]\n"
TRUNCATION_MARK = b"\n[output truncated: this attempt wrote more than is kept]\n"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Stored once by (run, seq), however often it is sent."""

    seq: int
    stream: Stream
    at: datetime
    data: bytes


@dataclass(frozen=True, slots=True)
class Unsent:
    """Output behind what is `stored` for sure. `dropped_bytes` of it, at its end, are gone."""

    stored: StoredOutput
    chunks: Sequence[Chunk]
    dropped_bytes: int = 0


@dataclass(slots=True)
class _Piece:
    stream: Stream
    at: datetime
    data: bytearray = field(default_factory=bytearray)


class Output:
    """Written by the thread that follows the container, drained by the one that syncs.

    It never blocks the follower: at most `cap_bytes` of a run are ever kept to be sent. `on_pending` is called
    when something is there to be sent after nothing was. `stored` is what an earlier follower had delivered;
    those bytes count for the tails, and aren't sent again.
    """

    def __init__(
        self,
        *,
        on_pending: Callable[[], None],
        stored: StoredOutput | None = None,
        next_seq: int = 0,
        cap_bytes: int = CAP_BYTES,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._on_pending = on_pending
        self._now = now
        self._lock = threading.Lock()
        self._delivered = {
            "stdout": stored.stdout_bytes if stored else 0,
            "stderr": stored.stderr_bytes if stored else 0,
        }
        self._confirmed = dict(self._delivered)
        self._room = cap_bytes - sum(self._delivered.values())
        self._next_seq = stored.next_seq if stored else next_seq
        self._seen = {"stdout": 0, "stderr": 0}
        self._position = {"stdout": 0, "stderr": 0}
        self._tails = {"stdout": bytearray(), "stderr": bytearray()}
        self._pieces: list[_Piece] = []
        self._sent: list[Chunk] = []
        # The streams that lack something, and say so. A run whose stored output is at the cap has got its marks
        # from whoever stored it.
        self._cut: set[Stream] = {"stdout", "stderr"} if self._room <= 0 else set()

    def begin_follow(self) -> None:
        """The engine is about to give the output from its first byte: skip what was seen already."""
        self._position = {"stdout": 0, "stderr": 0}

    def append(self, stream: Stream, data: bytes) -> None:
        """Take what the engine gave, in order within each stream."""
        start = self._position[stream]
        self._position[stream] = start + len(data)
        fresh = data[max(0, self._seen[stream] - start) :]
        if not fresh:
            return
        with self._lock:
            offset = self._seen[stream]
            self._seen[stream] += len(fresh)
            self._keep_tail(stream, fresh)
            was_empty = not self._pieces
            self._keep_pending(stream, fresh[max(0, self._delivered[stream] - offset) :])
            pending = was_empty and bool(self._pieces)
        if pending:
            self._on_pending()

    def mark_missing(self) -> None:
        """Say at its end that the engine didn't give all of it."""
        end = max(self._seen["stdout"], self._delivered["stdout"])
        self._seen["stdout"] = self._position["stdout"] = end
        self.append("stdout", MISSING_MARK)

    def take(self, budget_bytes: int) -> list[Chunk]:
        """The chunks to send now: first those whose delivery isn't confirmed, the same as before.

        New ones are added while the sum stays within the budget.
        """
        with self._lock:
            room = budget_bytes - sum(len(chunk.data) for chunk in self._sent)
            while self._pieces and room >= len(self._pieces[0].data):
                piece = self._pieces.pop(0)
                room -= len(piece.data) + CHUNK_COST_BYTES
                self._sent.append(Chunk(self._next_seq, piece.stream, piece.at, bytes(piece.data)))
                self._next_seq += 1
            return list(self._sent)

    def confirm(self) -> None:
        """What `take` gave was stored."""
        with self._lock:
            for chunk in self._sent:
                self._confirmed[chunk.stream] += len(chunk.data)
            self._sent.clear()

    def list_unsent(self) -> Unsent:
        """All that isn't confirmed yet, with the numbers that it has or will get. For output that has ended."""
        with self._lock:
            stored = StoredOutput(
                next_seq=self._next_seq - len(self._sent),
                stdout_bytes=self._confirmed["stdout"],
                stderr_bytes=self._confirmed["stderr"],
            )
            waiting = [
                Chunk(self._next_seq + index, piece.stream, piece.at, bytes(piece.data))
                for index, piece in enumerate(self._pieces)
            ]
            return Unsent(stored, [*self._sent, *waiting])

    def restore(self, unsent: Unsent) -> None:
        """Take over what an earlier process had yet to send; nothing is followed after this.

        What was stored meanwhile isn't sent again. When others have stored something else, a mark says that the
        rest is lost: chunks cut elsewhere can't be put behind theirs.
        """
        with self._lock:
            chunks = [chunk for chunk in unsent.chunks if chunk.seq >= self._next_seq]
            is_lost = unsent.dropped_bytes > 0
            if self._stored_after(unsent) != self._delivered:
                chunks, is_lost = [], True
            self._pieces = [_Piece(chunk.stream, chunk.at, bytearray(chunk.data)) for chunk in chunks]
            if is_lost:
                self._pieces.append(_Piece("stdout", self._now(), bytearray(LOSS_MARK)))
            self._cut = {"stdout", "stderr"}
            pending = bool(self._pieces)
        if pending:
            self._on_pending()

    def _stored_after(self, unsent: Unsent) -> dict[str, int]:
        """How much must be stored of each stream when the chunks before the next number are."""
        stored = {"stdout": unsent.stored.stdout_bytes, "stderr": unsent.stored.stderr_bytes}
        for chunk in unsent.chunks:
            if chunk.seq < self._next_seq:
                stored[chunk.stream] += len(chunk.data)
        return stored

    @property
    def drained(self) -> bool:
        """Nothing is left that `take` hasn't given."""
        with self._lock:
            return not self._pieces

    @property
    def result(self) -> bytes:
        """The last 64 KiB of standard output."""
        with self._lock:
            return bytes(self._tails["stdout"][-RESULT_BYTES:])

    @property
    def stderr_tail(self) -> str:
        with self._lock:
            return bytes(self._tails["stderr"][-STDERR_TAIL_BYTES:]).decode(errors="replace")

    def _keep_tail(self, stream: Stream, data: bytes) -> None:
        limit = RESULT_BYTES if stream == "stdout" else STDERR_TAIL_BYTES
        tail = self._tails[stream]
        tail += data[-limit:]
        # Cut only now and then: each cut copies the tail.
        if len(tail) > 2 * limit:
            del tail[:-limit]

    def _keep_pending(self, stream: Stream, data: bytes) -> None:
        if not data or stream in self._cut:
            return
        kept = data[: self._room]
        self._room -= len(kept)
        if len(kept) < len(data):
            self._cut.add(stream)
            kept += TRUNCATION_MARK
        for start in range(0, len(kept), CHUNK_BYTES):
            self._add_piece(stream, kept[start : start + CHUNK_BYTES])

    def _add_piece(self, stream: Stream, data: bytes) -> None:
        last = self._pieces[-1] if self._pieces else None
        if last is not None and last.stream == stream and len(last.data) + len(data) <= CHUNK_BYTES:
            last.data += data
            return
        if last is not None and last.stream != stream:
            self._room = max(0, self._room - CHUNK_COST_BYTES)
        self._pieces.append(_Piece(stream, self._now(), bytearray(data)))
