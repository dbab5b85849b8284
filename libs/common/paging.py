"""Lists in pages, by keyset: newest first, the cursor holds the last row that the client has seen."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypeVar
from uuid import UUID

import marshmallow as ma
from marshmallow import fields

from libs.common.clock import format_time, parse_time
from libs.common.schema import BaseSchema

DEFAULT_LIMIT = 50
MAX_LIMIT = 200


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where the next page starts: after this row, in the order (created_at DESC, id DESC)."""

    created_at: datetime
    id: UUID


class Listed(Protocol):
    """A row that can be listed."""

    @property
    def created_at(self) -> datetime: ...

    @property
    def id(self) -> UUID: ...


Row = TypeVar("Row", bound=Listed)


@dataclass(frozen=True, slots=True)
class Page:
    """`{"items": […], "nextCursor": "…" | null}` (API: Conventions)."""

    items: Sequence[Any]
    next_cursor: str | None


def to_page(rows: Sequence[Row], *, limit: int) -> Page:
    """The page made of the first `limit` rows. Ask the database for `limit + 1`: one more means a next page."""
    items = rows[:limit]
    if len(rows) <= limit:
        return Page(items, None)
    return Page(items, encode_cursor(Cursor(items[-1].created_at, items[-1].id)))


def encode_cursor(cursor: Cursor) -> str:
    text = f"{format_time(cursor.created_at)}|{cursor.id}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_cursor(text: str) -> Cursor:
    """ValueError when it isn't one of ours."""
    try:
        raw = base64.urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4)).decode()
        created_at, _, row_id = raw.partition("|")
        return Cursor(parse_time(created_at), UUID(row_id))
    except (binascii.Error, UnicodeError) as error:
        raise ValueError("not a cursor") from error


class QueryWhole(fields.Integer):
    """An integer in a query string: digits, with a sign if it is negative."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> int:
        if not isinstance(value, str) or not re.fullmatch(r"-?[0-9]{1,18}", value):
            raise self.make_error("invalid", input=value)
        return int(value)


class CursorField(fields.Field[Cursor]):
    """The `nextCursor` of an earlier page."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("metadata", {}).update({"type": "string", "description": "nextCursor of the last page."})
        super().__init__(**kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Cursor:
        try:
            return decode_cursor(value)
        except (ValueError, AttributeError) as error:
            raise ma.ValidationError("Not a cursor: send the nextCursor of an earlier page.") from error


class PageQuery(BaseSchema):
    """The query of every list; subclasses add filters."""

    limit = QueryWhole(load_default=DEFAULT_LIMIT, validate=ma.validate.Range(1, MAX_LIMIT))
    cursor = CursorField(load_default=None)
