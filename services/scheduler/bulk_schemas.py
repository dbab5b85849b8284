"""The bodies and queries of many tasks at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import marshmallow as ma
from marshmallow import fields, validate

from libs.common.paging import PageQuery
from libs.common.schema import BaseSchema, Text, Timestamp
from services.scheduler.schemas import MAX_LABELS, MAX_NAME, Identifier, NewTaskSchema, TaskSchema
from services.scheduler.states import TaskStatus

MAX_BATCH = 1000
MAX_IDS = 1000


class StatusList(fields.List[Any]):
    """`status=a&status=b` and `status=a,b`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(fields.String(validate=validate.OneOf(list(TaskStatus))), **kwargs)

    def _deserialize(
        self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any
    ) -> list[Any]:
        texts = value if isinstance(value, list) else [value]
        words = [word for text in texts for word in str(text).split(",")]
        return [TaskStatus(str(word)) for word in super()._deserialize(words, attr, data, **kwargs)]


class Label(fields.Field[tuple[str, str]]):
    """A label as filters name it, `key:value`. Keys have no colon, so the first one parts them."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("metadata", {}).update({"type": "string", "pattern": "^[^:]+:", "example": "team:red"})
        super().__init__(**kwargs)

    def _deserialize(
        self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any
    ) -> tuple[str, str]:
        text = Text().deserialize(value, attr, data, **kwargs)
        key, colon, label = text.partition(":")
        if not key or not colon:
            raise ma.ValidationError("Must be KEY:VALUE.")
        return key, label


class TaskFilterSchema(BaseSchema):
    """What a list and a bulk request's filter have in common: all that is given must hold."""

    status = StatusList(
        load_default=None,
        validate=validate.Length(1),
        metadata={"description": "One or several, any of which will do."},
    )
    label = fields.List(
        Label(),
        load_default=None,
        validate=validate.Length(1, MAX_LABELS),
        metadata={"description": "KEY:VALUE; several must all be there."},
    )
    name = Text(
        load_default=None,
        validate=validate.Length(1, MAX_NAME),
        metadata={"description": "How the name begins."},
    )
    schedule_id = Identifier(load_default=None)
    since = Timestamp(load_default=None, metadata={"description": "Created then or later."})
    until = Timestamp(load_default=None, metadata={"description": "Created before."})
    user_id = Identifier(load_default=None, metadata={"description": "Admins only."})


class TaskQuerySchema(PageQuery, TaskFilterSchema):
    """A list's query."""


class TaskPageSchema(BaseSchema):
    items = fields.List(fields.Nested(TaskSchema), required=True)
    next_cursor = fields.String(required=True, allow_none=True)


class StatsQuerySchema(BaseSchema):
    user_id = Identifier(load_default=None, metadata={"description": "Admins only; without it everybody's."})


class StatsSchema(BaseSchema):
    by_status = fields.Dict(
        keys=fields.String(validate=validate.OneOf(list(TaskStatus))), values=fields.Integer(), required=True
    )


class NewTasksSchema(BaseSchema):
    """A batch: all of its tasks are created, or none."""

    tasks = fields.List(fields.Nested(NewTaskSchema), required=True, validate=validate.Length(1, MAX_BATCH))


class CreatedTasksSchema(BaseSchema):
    items = fields.List(fields.Nested(TaskSchema), required=True)


class BulkSchema(BaseSchema):
    """Either `ids` or `filter`."""

    ids = fields.List(
        Identifier(),
        load_default=None,
        validate=validate.Length(1, MAX_IDS),
        metadata={"description": "Those that are not there, or not yours, are passed over."},
    )
    filter = fields.Nested(TaskFilterSchema, load_default=None)

    @ma.validates_schema
    def check_choice(self, data: Mapping[str, Any], **_kwargs: Any) -> None:
        if (data["ids"] is None) == (data["filter"] is None):
            raise ma.ValidationError("Send either ids or filter.")
        if data["filter"] is not None and all(value is None for value in data["filter"].values()):
            raise ma.ValidationError("Must not be empty: say at least which status.", "filter")


class CountsSchema(BaseSchema):
    matched = fields.Integer(required=True, metadata={"description": "Tasks that were meant."})
    changed = fields.Integer(required=True, metadata={"description": "Those of them that this request changed."})
