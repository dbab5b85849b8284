"""Answers that last: a stream of events goes on only while the session that asked for it does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import structlog

from libs.common.errors import Unavailable

log = structlog.get_logger()

CONTENT_TYPE = "text/event-stream"
# The services send something at least that often, so a session's end is noticed in about twice that time.
CHECK_SECONDS = 5.0
# How long a stream goes on while nobody can say whether its session does: a restart of the users service.
UNKNOWN_SECONDS = 30.0


class Body(Protocol):
    """The service's answer."""

    def __next__(self) -> bytes: ...

    def close(self) -> None: ...


class EventStream(Iterator[bytes]):
    """A service's stream, piece by piece, until its end, the session's, or this process's.

    In the last two cases it ends without the service's last event, and its client comes back. `holds` says whether
    the session lives, and raises Unavailable when nobody knows.
    """

    def __init__(
        self,
        body: Body,
        *,
        holds: Callable[[], bool],
        stopping: threading.Event,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._body = body
        self._holds = holds
        self._stopping = stopping
        self._monotonic = monotonic
        self._checked_at = self._known_at = monotonic()

    def __next__(self) -> bytes:
        piece = next(self._body)
        if self._stopping.is_set() or not self._may_go_on():
            raise StopIteration
        return piece

    def close(self) -> None:
        self._body.close()

    def _may_go_on(self) -> bool:
        now = self._monotonic()
        if now - self._checked_at < CHECK_SECONDS:
            return True
        self._checked_at = now
        try:
            holds = self._holds()
        except Unavailable:
            return now - self._known_at < UNKNOWN_SECONDS
        self._known_at = now
        if not holds:
            log.info("stream_ended_with_its_session")
        return holds
