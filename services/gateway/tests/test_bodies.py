from __future__ import annotations

import io

import pytest
from werkzeug.exceptions import RequestEntityTooLarge

from libs.common.errors import BadRequest, RequestTimeout, Unavailable
from services.gateway import bodies
from services.gateway.bodies import Turns, read_body

MEGABYTE = 1024 * 1024


def read(data: bytes, *, declared: int | None = None, limit: int = MEGABYTE, turns: Turns | None = None) -> bytes:
    length = len(data) if declared is None else declared
    with read_body(io.BytesIO(data), declared=length, limit=limit, turns=turns or Turns()) as body:
        return body


@pytest.mark.parametrize("size", [0, 1, MEGABYTE])
@pytest.mark.parametrize("with_length", [True, False])
def test_a_body_up_to_the_limit_is_read_whole(size: int, with_length: bool):
    data = b"x" * size

    assert read(data, declared=size if with_length else 0) == data
    assert read(data + data, declared=2 * size if with_length else 0, limit=2 * MEGABYTE) == data + data


@pytest.mark.parametrize("limit", [MEGABYTE, 2 * MEGABYTE])
@pytest.mark.parametrize("with_length", [True, False])
def test_a_body_over_the_limit_is_refused(limit: int, with_length: bool):
    with pytest.raises(RequestEntityTooLarge):
        read(b"x" * (limit + 1), declared=limit + 1 if with_length else 0, limit=limit)


@pytest.mark.parametrize("limit", [MEGABYTE, 2 * MEGABYTE])
def test_a_body_that_ends_before_its_length_is_refused(limit: int):
    with pytest.raises(BadRequest):
        read(b"x", declared=2, limit=limit)


def test_where_large_bodies_are_allowed_requests_take_turns():
    turns = Turns(1, wait_seconds=0.01)

    with read_body(io.BytesIO(b"a"), declared=1, limit=2 * MEGABYTE, turns=turns):
        with pytest.raises(Unavailable) as refused:
            read(b"b", limit=2 * MEGABYTE, turns=turns)
        assert read(b"c", turns=turns) == b"c"
    assert refused.value.retry_after_seconds
    assert read(b"d", limit=2 * MEGABYTE, turns=turns) == b"d"


def test_a_request_that_fails_gives_its_turn_back():
    turns = Turns(1, wait_seconds=0.01)

    for _ in range(2):
        with pytest.raises(BadRequest):
            read(b"x", declared=2, limit=2 * MEGABYTE, turns=turns)
    assert read(b"x", limit=2 * MEGABYTE, turns=turns) == b"x"


def test_nobody_keeps_a_turn_by_sending_a_large_body_slowly(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bodies, "LARGE_READ_SECONDS", -1.0)

    with pytest.raises(RequestTimeout):
        read(b"x" * (MEGABYTE + 2), limit=2 * MEGABYTE)
    assert read(b"x" * MEGABYTE, limit=2 * MEGABYTE) == b"x" * MEGABYTE
