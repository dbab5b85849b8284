"""Bodies and queries of what admins do: quotas and executors."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import marshmallow as ma
from marshmallow import fields, validate

from libs.common.paging import DEFAULT_LIMIT, MAX_LIMIT, QueryWhole
from libs.common.schema import BaseSchema, Timestamp, Whole
from services.scheduler.executors import SILENT
from services.scheduler.quota_store import Quota
from services.scheduler.states import ExecutorState

_MOST = 1_000_000_000


def _limit(description: str) -> Whole:
    return Whole(
        load_default=None,
        allow_none=True,
        validate=validate.Range(0, _MOST),
        metadata={"description": f"{description} null: the system's default."},
    )


class NewQuotaSchema(BaseSchema):
    """All of a user's quota: what is left out is null."""

    running = _limit("At most so many tasks under way at a time; further ones wait.")
    queued = _limit("At most so many tasks waiting, those with a later start included.")
    created_per_minute = _limit("At most so many tasks created in any minute.")

    @ma.post_load
    def make(self, data: dict[str, Any], **_kwargs: Any) -> Quota:
        return Quota(**data)


class EffectiveQuotaSchema(BaseSchema):
    running = fields.Integer(required=True, allow_none=True)
    queued = fields.Integer(required=True, allow_none=True)
    created_per_minute = fields.Integer(required=True, allow_none=True)


class QuotaSchema(EffectiveQuotaSchema):
    """What an admin set, null where that is nothing, and what holds."""

    effective = fields.Nested(
        EffectiveQuotaSchema,
        required=True,
        metadata={"description": "With the system's defaults; null: no limit."},
    )


class TextCursor(fields.Field[str]):
    """The `nextCursor` of an earlier page of a list in the order of its ids."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("metadata", {}).update({"type": "string", "description": "nextCursor of the last page."})
        super().__init__(**kwargs)

    def _serialize(self, value: str | None, *_args: Any, **_kwargs: Any) -> str | None:
        return None if value is None else base64.urlsafe_b64encode(value.encode()).decode().rstrip("=")

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> str:
        try:
            text = base64.b64decode(value.encode() + b"=" * (-len(value) % 4), b"-_", validate=True).decode()
        except (binascii.Error, UnicodeError, AttributeError) as error:
            raise ma.ValidationError("Not a cursor: send the nextCursor of an earlier page.") from error
        if "\x00" in text:
            raise ma.ValidationError("Not a cursor: send the nextCursor of an earlier page.")
        return text


class ExecutorQuerySchema(BaseSchema):
    limit = QueryWhole(load_default=DEFAULT_LIMIT, validate=validate.Range(1, MAX_LIMIT))
    cursor = TextCursor(load_default="")


class ExecutorSchema(BaseSchema):
    id = fields.String(required=True)
    host = fields.String(required=True)
    engine = fields.String(required=True, metadata={"description": "The id of its container engine."})
    pools = fields.List(fields.String(), required=True)
    slots = fields.Integer(required=True)
    running = fields.Integer(required=True, metadata={"description": "The runs that it holds."})
    state = fields.String(
        required=True,
        validate=validate.OneOf([*ExecutorState, SILENT]),
        metadata={"description": "`silent`: not heard of for 15 s."},
    )
    started_at = Timestamp(required=True)
    last_seen_at = Timestamp(required=True)


class ExecutorPageSchema(BaseSchema):
    items = fields.List(fields.Nested(ExecutorSchema), required=True)
    next_cursor = TextCursor(required=True, allow_none=True)
