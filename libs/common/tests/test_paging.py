from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import ValidationError

from libs.common.paging import Cursor, PageQuery, decode_cursor, encode_cursor, to_page


@dataclass(frozen=True)
class Row:
    id: uuid.UUID
    created_at: datetime


def some_rows(count: int) -> list[Row]:
    return [Row(uuid.uuid4(), datetime(2026, 1, 1, 0, 0, number, tzinfo=UTC)) for number in range(count)]


@given(st.datetimes(timezones=st.just(UTC)), st.uuids())
def test_a_cursor_survives_the_wire(created_at: datetime, row_id: uuid.UUID):
    cursor = Cursor(created_at, row_id)

    assert decode_cursor(encode_cursor(cursor)) == cursor


def test_a_page_with_more_behind_it_says_where_to_go_on():
    rows = some_rows(3)

    page = to_page(rows, limit=2)

    assert page.items == rows[:2]
    assert page.next_cursor is not None
    assert decode_cursor(page.next_cursor) == Cursor(rows[1].created_at, rows[1].id)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_last_page_says_so(count: int):
    assert to_page(some_rows(count), limit=2).next_cursor is None


@given(st.text(max_size=100))
def test_any_other_text_is_no_cursor(text: str):
    with pytest.raises(ValidationError):
        PageQuery().load({"cursor": text})


@pytest.mark.parametrize("limit", ["0", "201", "-1", "x", "", "1.0", "1_0", "٣", "9" * 30, " 5"])
def test_a_limit_outside_one_to_two_hundred_is_refused(limit: str):
    with pytest.raises(ValidationError):
        PageQuery().load({"limit": limit})


def test_the_first_page_needs_nothing():
    assert PageQuery().load({}) == {"limit": 50, "cursor": None}
