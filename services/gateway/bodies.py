"""Reads requests' bodies, as large as their path takes them and no larger, and few large ones at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from gunicorn.http.errors import ParseException
from werkzeug.exceptions import RequestEntityTooLarge

from libs.common.errors import BadRequest, RequestTimeout, Unavailable
from libs.common.flask_app import MAX_BODY_BYTES

CHUNK_BYTES = 64 * 1024
# How much more of a body that is too large is read before the answer.
DISCARDED_BYTES = 16 * 1024 * 1024
# Large requests that are in memory, and with their service, at a time; how long others wait, and they may take.
LARGE_AT_ONCE = 4
LARGE_WAIT_SECONDS = 10.0
LARGE_READ_SECONDS = 20.0


class Turns:
    """Lets so many at a time; Unavailable for who has waited too long."""

    def __init__(self, count: int = LARGE_AT_ONCE, *, wait_seconds: float = LARGE_WAIT_SECONDS) -> None:
        self._free = threading.BoundedSemaphore(count)
        self._wait_seconds = wait_seconds

    @contextmanager
    def take(self) -> Iterator[None]:
        if not self._free.acquire(timeout=self._wait_seconds):
            raise Unavailable("Too many large requests at once. Try again.", retry_after_seconds=2)
        try:
            yield
        finally:
            self._free.release()


@contextmanager
def read_body(stream: IO[bytes], *, declared: int, limit: int, turns: Turns) -> Iterator[bytes]:
    """The whole body, so that a slow client holds no connection to a service; 413 when it is larger than `limit`.

    Where more than MAX_BODY_BYTES are allowed, one of the `turns` is held while the context lasts; a client gets
    it only when so much has come, or everything. `declared` is the body's Content-Length, 0 without one.
    """
    if declared > limit:
        _refuse(stream)
    first = _read(stream, min(limit, MAX_BODY_BYTES) + 1)
    if limit <= MAX_BODY_BYTES:
        yield _check(first, stream, declared=declared, limit=limit)
        return
    with turns.take():
        rest = b"" if len(first) <= MAX_BODY_BYTES else _read(stream, limit + 1 - len(first), LARGE_READ_SECONDS)
        yield _check(first + rest, stream, declared=declared, limit=limit)


def _check(body: bytes, stream: IO[bytes], *, declared: int, limit: int) -> bytes:
    if len(body) > limit:
        _refuse(stream)
    # A client that broke off may have sent what looks whole.
    if len(body) < declared:
        raise BadRequest("The request's body is shorter than its Content-Length.")
    return body


def _read(stream: IO[bytes], most: int, seconds: float = float("inf")) -> bytes:
    # The server's own stream ends where the body does. Flask's would return the beginning of a body without a
    # length that is too large, as if it were the whole.
    try:
        return b"".join(_read_pieces(stream, most, time.monotonic() + seconds))
    except TimeoutError as error:
        raise RequestTimeout("The request's body didn't arrive in time.") from error
    except (ParseException, OSError) as error:
        raise BadRequest("The request's body broke off, or its chunks are malformed.") from error


def _read_pieces(stream: IO[bytes], most: int, deadline: float) -> Iterator[bytes]:
    while most > 0 and (piece := stream.read(min(most, CHUNK_BYTES))):
        yield piece
        most -= len(piece)
        if time.monotonic() > deadline:
            raise TimeoutError


def _refuse(stream: IO[bytes]) -> None:
    """Read on for a while, then 413: a client that is cut off while it sends never sees the answer."""
    with suppress(ParseException, OSError):
        for _ in range(DISCARDED_BYTES // CHUNK_BYTES):
            if not stream.read(CHUNK_BYTES):
                break
    raise RequestEntityTooLarge
