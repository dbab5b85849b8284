from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import EXCLUDE, Schema, ValidationError, fields, post_load, validate, validates_schema

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


class Inner(BaseSchema):
    size = Whole(required=True, validate=validate.Range(0, 5))
    note = Text(load_default="none", allow_none=True)


class Outer(BaseSchema):
    a_text = Text(required=True, validate=validate.Length(1, 3))
    words = fields.List(Text(), load_default=list)
    inner = fields.Nested(Inner, load_default=lambda: {"size": 1})
    many_inner = fields.List(fields.Nested(Inner), load_default=None)
    by_name = fields.Dict(keys=Text(), values=Whole(), load_default=dict)
    at_time = Timestamp(load_default=None, allow_none=True)


class Checked(Outer):
    @validates_schema
    def check(self, data: Any, **_kwargs: Any) -> None:
        if data.get("words") == ["no"]:
            raise ValidationError("Not that word.")


class Lenient(Outer):
    """As what executors send is read: unknown keys are passed over, and something is made of the rest."""

    class Meta:
        unknown = EXCLUDE

    @post_load
    def make(self, data: dict[str, Any], **_kwargs: Any) -> Any:
        if data["words"] == ["no"]:
            raise ValidationError("Not that word.", "words")
        return tuple(sorted(data)), data.pop("a_text"), data


inner = st.fixed_dictionaries({}, optional={"size": st.integers(-1, 6), "note": st.none() | st.text(max_size=2)})
scalars = st.none() | st.booleans() | st.integers(-1, 6) | st.text(max_size=4)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "aText": st.text(max_size=4) | scalars,
        "words": st.lists(st.sampled_from(["no", "yes"]) | scalars, max_size=2) | scalars,
        "inner": inner | scalars,
        "manyInner": st.lists(inner | scalars, max_size=3) | scalars,
        "byName": st.dictionaries(st.text(max_size=2), scalars, max_size=2) | scalars,
        "atTime": st.sampled_from(["2026-01-31T08:15:00Z", "tomorrow"]) | scalars,
        "more": scalars,
    },
)


def load(schema: BaseSchema, body: Any, *, plainly: bool) -> Any:
    try:
        return Schema.load(schema, body) if plainly else schema.load(body)
    except ValidationError as error:
        return "refused", error.messages


@given(body=bodies | scalars, schema=st.sampled_from([Outer(), Checked(), Lenient()]))
def test_the_short_way_loads_and_refuses_as_marshmallow_does(body: Any, schema: BaseSchema):
    assert load(schema, body, plainly=False) == load(schema, body, plainly=True)


@given(body=bodies)
def test_the_short_way_dumps_as_marshmallow_does(body: Any):
    loaded = load(Outer(), body, plainly=True)
    if isinstance(loaded, dict):
        assert Outer().dump(loaded) == Schema.dump(Outer(), loaded)


def test_defaults_are_made_anew_for_each_body():
    first, second = (Outer().load({"aText": "x"}) for _ in range(2))

    assert first == second
    assert first["words"] is not second["words"]


def test_a_schema_that_asks_for_less_is_loaded_by_marshmallow():
    assert Outer(partial=True).load({}) == {}
    assert Outer(many=True).load([{"aText": "x"}])[0]["a_text"] == "x"
    assert Outer(unknown="exclude").load({"aText": "x", "more": 1})["a_text"] == "x"
    assert Outer(many=True).dump([{"a_text": "x"}]) == [{"aText": "x"}]
