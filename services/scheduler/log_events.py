"""Output as server-sent events (docs/output.md). Pure."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from libs.common.clock import format_time
from services.scheduler.log_text import split_incomplete
from services.scheduler.states import LogStream

CONTENT_TYPE = "text/event-stream"
KEEP_ALIVE = b": keep-alive\n\n"
# What a browser waits before it comes back after a stream that broke off.
OPENING = b"retry: 1000\n\n"

_SEQ_BITS = 40
_LAST_SEQ = (1 << _SEQ_BITS) - 1
MAX_ID = (1 << 63) - 1


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Behind which chunk of which attempt a reader stands.

    As an event's id it is one number that grows over all attempts of a task; within the first attempt it is the
    chunk's own.
    """

    number: int
    seq: int

    @property
    def event_id(self) -> int:
        return ((self.number - 1) << _SEQ_BITS) + self.seq

    def end_of_attempt(self) -> Position:
        return Position(self.number, _LAST_SEQ)


def begin_of_attempt(number: int) -> Position:
    return Position(number, -1)


def parse_event_id(event_id: int) -> Position:
    """The position of an id that was sent in an event."""
    return Position((event_id >> _SEQ_BITS) + 1, event_id & _LAST_SEQ)


@dataclass(frozen=True, slots=True)
class Ending:
    """How what was followed ended: a run, a task, or nothing, when it was deleted."""

    status: str
    reason: str | None = None
    exit_code: int | None = None
    attempt: int | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One piece of output as it is sent; or, with `ending`, the mark that its attempt is over, which isn't."""

    position: Position
    stream: LogStream | None
    body: bytes
    ending: Ending | None = None


class EventEncoder:
    """Turns one attempt's chunks into events, in order.

    A character whose bytes lie in two chunks is sent with the second one. `ends` are the last bytes of each
    stream before the first chunk.
    """

    def __init__(self, number: int, ends: Mapping[LogStream, bytes] | None = None) -> None:
        self._number = number
        self._pending = {stream: split_incomplete((ends or {}).get(stream, b""))[1] for stream in LogStream}
        self._last_seq = -1
        self._last_at: datetime | None = None

    def encode(self, seq: int, stream: LogStream, at: datetime, data: bytes) -> Event | None:
        """None for a chunk of which nothing can be shown yet."""
        self._last_seq, self._last_at = seq, at
        shown, self._pending[stream] = split_incomplete(self._pending[stream] + data)
        return self._make(seq, stream, at, shown) if shown else None

    def flush(self) -> list[Event]:
        """The attempt is over: what was held back won't be completed any more."""
        left = [(stream, data) for stream, data in self._pending.items() if data]
        self._pending = dict.fromkeys(LogStream, b"")
        if self._last_at is None:
            return []
        return [
            self._make(self._last_seq + number, stream, self._last_at, data)
            for number, (stream, data) in enumerate(left, start=1)
        ]

    def _make(self, seq: int, stream: LogStream, at: datetime, data: bytes) -> Event:
        position = Position(self._number, seq)
        fields: dict[str, Any] = {"attempt": self._number, "stream": stream, "at": format_time(at)}
        try:
            fields["text"] = data.decode()
        except UnicodeDecodeError:
            fields["text"] = data.decode(errors="replace")
            fields["base64"] = base64.b64encode(data).decode()
        return Event(position, stream, _render(fields, event_id=position.event_id))


def render_end(ending: Ending) -> bytes:
    """The last event of a stream that came to its end."""
    fields = {
        "status": ending.status,
        "reason": ending.reason,
        "exitCode": ending.exit_code,
        "attempt": ending.attempt,
    }
    return b"event: end\n" + _render(fields)


def _render(fields: Mapping[str, Any], *, event_id: int | None = None) -> bytes:
    # Everything that isn't printable ASCII is escaped: newlines, and what a terminal would take for a command.
    data = f"data: {json.dumps(fields)}\n\n".encode("ascii")
    return data if event_id is None else b"id: %d\n" % event_id + data
