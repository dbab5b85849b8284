"""marshmallow as our API uses it: camelCase on the wire, unknown keys refused, no silent conversions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import marshmallow as ma
from marshmallow import fields

from libs.common.clock import format_time, parse_time

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.title() for part in rest)


class BaseSchema(ma.Schema):
    """snake_case attributes, camelCase keys; an unknown key is an error.

    Good input and dicts take a short way with the same results (libs/common/tests/test_schema.py): a batch of a
    thousand tasks is loaded and dumped field by field, and marshmallow's bookkeeping cost more than the fields.
    """

    class Meta:
        unknown = ma.RAISE

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        hooks = {tag for tag, methods in self._hooks.items() if methods}
        own_names = all(field.attribute is None for field in self.fields.values())
        is_whole = self.unknown in {ma.RAISE, ma.EXCLUDE} and not self.partial
        self._loads_directly = own_names and is_whole and not hooks - {"pre_dump", "post_dump", "post_load"}
        self._makes = "post_load" in hooks
        self._dumps_directly = own_names and not hooks & {"pre_dump", "post_dump"}
        self._required = frozenset(_key(field) for field in self.load_fields.values() if field.required)
        self._by_key = {_key(field): (name, field.deserialize) for name, field in self.load_fields.items()}
        self._defaults = [
            (name, field.load_default)
            for name, field in self.load_fields.items()
            if field.load_default is not ma.missing
        ]
        self._dumpers = [(name, _key(field), field._serialize) for name, field in self.dump_fields.items()]

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        field_obj.data_key = _camel(field_obj.data_key or field_name)

    def load(self, data: Any, *, many: Any = None, partial: Any = None, unknown: Any = None) -> Any:
        if self._loads_directly and type(data) is dict and not (many or self.many or partial or unknown):
            try:
                return self._load_directly(data)
            except (ma.ValidationError, KeyError):
                # Once more, in the way that finds everything that is wrong.
                pass
        return super().load(data, many=many, partial=partial, unknown=unknown)

    def dump(self, obj: Any, *, many: bool | None = None) -> Any:
        if self._dumps_directly and type(obj) is dict and not (many or self.many):
            return {key: write(obj[name], name, obj) for name, key, write in self._dumpers if name in obj}
        return super().dump(obj, many=many)

    def _load_directly(self, data: dict[str, Any]) -> Any:
        """KeyError for an unknown or missing key, ValidationError for a bad value."""
        if not self._required <= data.keys():
            raise KeyError
        loaded = {name: default() if callable(default) else default for name, default in self._defaults}
        for key, value in data.items():
            if key not in self._by_key and self.unknown == ma.EXCLUDE:
                continue
            name, read = self._by_key[key]
            loaded[name] = read(value, key, data)
        return self._make(loaded, data) if self._makes else loaded

    def _make(self, loaded: dict[str, Any], data: dict[str, Any]) -> Any:
        return self._invoke_load_processors(
            "post_load", loaded, many=False, original_data=data, partial=self.partial, unknown=self.unknown
        )


def _key(field: fields.Field[Any]) -> str:
    return str(field.data_key)


class Text(fields.String):
    """A string that PostgreSQL and UTF-8 can hold: no NUL, no lone surrogate. Only a JSON string will do."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> str:
        text = super()._deserialize(value, attr, data, **kwargs)
        if text is not None and _UNSTORABLE.search(text):
            raise ma.ValidationError("Must not contain NUL or lone surrogates.")
        return text


class Whole(fields.Integer):
    """An integer; neither "5" nor 5.0 nor true."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.make_error("invalid", input=value)
        return value


class Number(fields.Float):
    """A finite number; neither "0.5" nor true."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.make_error("invalid", input=value)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.make_error("special", input=value)
        return number


class Flag(fields.Boolean):
    """true or false; neither "yes" nor 1."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


class Timestamp(fields.Field[datetime]):
    """RFC 3339 with its offset on the way in; UTC with `Z` on the way out."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("metadata", {}).update({"type": "string", "format": "date-time"})
        super().__init__(**kwargs)

    def _serialize(self, value: datetime | None, attr: str | None, obj: Any, **kwargs: Any) -> str | None:
        return None if value is None else format_time(value)

    def _deserialize(
        self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any
    ) -> datetime:
        try:
            return parse_time(value)
        except (TypeError, ValueError) as error:
            raise ma.ValidationError(
                "Must be an RFC 3339 time with its offset, like 2026-01-31T08:15:00Z."
            ) from error
