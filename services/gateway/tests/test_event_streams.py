from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from libs.common.errors import Unavailable
from services.gateway.event_streams import CHECK_SECONDS, UNKNOWN_SECONDS, EventStream


class FakeBody:
    """A service that always has something to send."""

    closed = False

    def __next__(self) -> bytes:
        return b": keep-alive\n\n"

    def close(self) -> None:
        self.closed = True


class FakeSession:
    """Lives, is over, or nobody knows (None)."""

    def __init__(self) -> None:
        self.lives: bool | None = True
        self.checks = 0
        self.now = 0.0

    def holds(self) -> bool:
        self.checks += 1
        if self.lives is None:
            raise Unavailable("nobody knows")
        return self.lives


@pytest.fixture
def session() -> FakeSession:
    return FakeSession()


@pytest.fixture
def stopping() -> threading.Event:
    return threading.Event()


@pytest.fixture
def stream(session: FakeSession, stopping: threading.Event) -> Iterator[bytes]:
    return EventStream(FakeBody(), holds=session.holds, stopping=stopping, monotonic=lambda: session.now)


def test_a_stream_goes_on_while_its_session_lives(session: FakeSession, stream: Iterator[bytes]):
    for step in range(100):
        session.now = float(step)
        assert next(stream) == b": keep-alive\n\n"

    assert 100 / CHECK_SECONDS - 2 <= session.checks <= 100 / CHECK_SECONDS


def test_a_stream_ends_soon_after_its_session(session: FakeSession, stream: Iterator[bytes]):
    next(stream)
    session.lives = False
    session.now += CHECK_SECONDS

    assert list(stream) == []


def test_a_stream_outlives_a_while_in_which_nobody_knows(session: FakeSession, stream: Iterator[bytes]):
    session.lives = None
    session.now = UNKNOWN_SECONDS - 1
    next(stream)
    session.lives = True
    session.now += CHECK_SECONDS
    next(stream)
    session.lives = None
    session.now += UNKNOWN_SECONDS - 1
    next(stream)
    session.now += CHECK_SECONDS

    assert list(stream) == []


def test_a_stream_ends_when_the_gateway_stops(stopping: threading.Event, stream: Iterator[bytes]):
    next(stream)

    stopping.set()

    assert list(stream) == []


def test_closing_a_stream_closes_the_services_answer(session: FakeSession):
    body = FakeBody()

    EventStream(body, holds=session.holds, stopping=threading.Event()).close()

    assert body.closed
