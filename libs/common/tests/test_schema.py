from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import ValidationError

from libs.common.schema import BaseSchema, Flag, Number, Text, Timestamp, Whole


class Example(BaseSchema):
    a_text = Text()
    whole_number = Whole()
    a_number = Number()
    a_flag = Flag()
    at_time = Timestamp(allow_none=True)


def errors_of(body: Any) -> Any:
    with pytest.raises(ValidationError) as refused:
        Example().load(body)
    return refused.value.messages


def test_names_are_snake_inside_and_camel_on_the_wire():
    assert Example().load({"aText": "x", "wholeNumber": 1}) == {"a_text": "x", "whole_number": 1}
    assert Example().dump({"a_text": "x"}) == {"aText": "x"}


def test_an_unknown_key_is_refused_and_named():
    assert set(errors_of({"a_text": "x", "zzz": 1})) == {"a_text", "zzz"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("aText", 1),
        ("aText", None),
        ("aText", ["x"]),
        ("aText", "a\x00b"),
        ("aText", "\ud800"),
        ("wholeNumber", "5"),
        ("wholeNumber", 5.0),
        ("wholeNumber", True),
        ("wholeNumber", None),
        ("aNumber", "0.5"),
        ("aNumber", True),
        ("aNumber", math.inf),
        ("aNumber", math.nan),
        ("aNumber", 10**400),
        ("aFlag", "yes"),
        ("aFlag", 1),
        ("aFlag", "true"),
        ("atTime", "2026-01-31"),
        ("atTime", 1),
        ("atTime", {}),
    ],
)
def test_nothing_is_converted_silently(field: str, value: Any):
    assert set(errors_of({field: value})) == {field}


@given(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])))
def test_every_text_that_the_database_can_hold_is_kept_as_it_is(text: str):
    assert Example().load({"aText": text}) == {"a_text": text}


def test_times_go_out_in_utc():
    loaded = Example().load({"atTime": "2026-01-31T09:15:00+01:00"})

    assert Example().dump(loaded) == {"atTime": "2026-01-31T08:15:00.000000Z"}
    assert Example().dump({"at_time": None}) == {"atTime": None}
