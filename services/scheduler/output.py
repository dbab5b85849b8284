"""What a container printed, as bytes, made fit for JSON and for reading."""

from __future__ import annotations

RESULT_BYTES = 64 * 1024
_LONGEST_CHARACTER = 4


def keep_tail(data: bytes) -> bytes:
    """The last RESULT_BYTES of an output."""
    return data[-RESULT_BYTES:]


def decode_result(data: bytes | None) -> str | None:
    """An output's tail as text: UTF-8, a byte that isn't part of it shown as `\\xNN`."""
    if data is None:
        return None
    return _drop_cut_character(data).decode("utf-8", errors="backslashreplace")


def _drop_cut_character(data: bytes) -> bytes:
    """Without the rest of a character whose first bytes the cut took away."""
    if len(data) < RESULT_BYTES:
        return data
    for index in range(_LONGEST_CHARACTER):
        is_continuation = data[index] & 0b1100_0000 == 0b1000_0000
        if not is_continuation:
            return data[index:]
    # Four in a row are no character's rest: the output is binary, and all of it counts.
    return data
