from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.clock import format_time, parse_time, utc_now

offsets = st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(
    lambda delta: timezone(timedelta(minutes=delta // timedelta(minutes=1)))
)


@given(st.datetimes(timezones=offsets).filter(lambda moment: 2 <= moment.year <= 9998))
def test_a_time_survives_the_wire(moment: datetime):
    assert parse_time(format_time(moment)) == moment


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-31T08:15:00Z",
        "2026-01-31T08:15:00.000000Z",
        "2026-01-31T09:15:00+01:00",
        "2026-01-31t08:15:00z",
        "2026-01-31 08:15:00Z",
        "2026-01-31T08:15Z",
        "2026-01-31T08:15:00.000000000Z",
    ],
)
def test_each_spelling_of_an_instant_is_the_same_in_utc(text: str):
    assert parse_time(text) == datetime(2026, 1, 31, 8, 15, tzinfo=UTC)
    assert parse_time(text).tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2026-01-31",
        "2026-01-31T08:15:00",
        "20260131T081500Z",
        "2026-W05-6T08:15:00Z",
        "2026-02-30T08:15:00Z",
        "2026-01-31T25:00:00Z",
        "10000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+10:00",
        "9999-12-31T23:59:59-10:00",
        "2026-01-31T08:15:00Z\n",
        "2026-01-31T08:15:00Zjunk",
        "2026-01-31T08:15:00+01",
        "2026-01-31T08:15:00+0100",
        "2026-01-31T08:15:00+01:00:30",
        "２026-01-31T08:15:00Z",
    ],
)
def test_what_is_no_instant_is_refused(text: str):
    with pytest.raises(ValueError):  # noqa: PT011  The caller gives the message.
        parse_time(text)


@given(st.text())
def test_any_other_text_is_refused(text: str):
    try:
        moment = parse_time(text)
    except ValueError:
        return
    assert moment.tzinfo is UTC


def test_now_is_aware():
    assert utc_now().tzinfo is UTC
    assert format_time(datetime(2026, 1, 2, tzinfo=UTC)) == "2026-01-02T00:00:00.000000Z"
