"""What a run printed, cut into lines and characters. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from libs.common.clock import format_time
from services.scheduler.states import LogStream

_LONGEST_CHARACTER = 4
_NEWLINE = b"\n"


def split_incomplete(data: bytes) -> tuple[bytes, bytes]:
    """The data without the beginning of a UTF-8 character at its end, and that beginning."""
    for length in range(1, min(_LONGEST_CHARACTER, len(data) + 1)):
        lead = data[-length]
        if lead & 0b1100_0000 == 0b1000_0000:
            continue
        if length < _length_of_character(lead) and _may_begin_character(data[-length:]):
            return data[:-length], data[-length:]
        break
    return data, b""


def _length_of_character(lead: int) -> int:
    if lead >= 0b1111_0000:
        return 4
    if lead >= 0b1110_0000:
        return 3
    return 2 if lead >= 0b1100_0000 else 1


def _may_begin_character(beginning: bytes) -> bool:
    try:
        beginning.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False


class LineStamps:
    """Puts the time in front of each line, as `docker logs --timestamps` does: `2026-01-31T08:15:00.123456Z text`.

    A line's time is that of the chunk in which it begins; each stream has lines of its own.
    """

    def __init__(self) -> None:
        self._at_line_start = dict.fromkeys(LogStream, True)

    def stamp(self, stream: LogStream, at: datetime, data: bytes) -> bytes:
        if not data:
            return data
        prefix = format_time(at).encode() + b" "
        ends_line = data.endswith(_NEWLINE)
        body = data[:-1] if ends_line else data
        stamped = body.replace(_NEWLINE, _NEWLINE + prefix) + (_NEWLINE if ends_line else b"")
        if self._at_line_start[stream]:
            stamped = prefix + stamped
        self._at_line_start[stream] = ends_line
        return stamped


def find_last_lines(chunks_backwards: Iterable[tuple[int, bytes]], count: int) -> tuple[int, int] | None:
    """Where the last `count` lines (at least one) begin: the number of a chunk and an offset in it.

    `chunks_backwards` are numbers and bytes, the last chunk first; no more are taken than needed. None when all
    of them belong to these lines. A last line without its newline counts too.
    """
    is_end = True
    for seq, data in chunks_backwards:
        end = len(data)
        if is_end and data.endswith(_NEWLINE):
            end -= 1
        is_end = False
        while (end := data.rfind(_NEWLINE, 0, end)) != -1:
            count -= 1
            if count == 0:
                return seq, end + 1
    return None
