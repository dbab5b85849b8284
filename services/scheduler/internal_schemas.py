"""What executors send in a sync. Keys that this code doesn't know are ignored: a newer executor may send them."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import marshmallow as ma
from marshmallow import fields, validate

from libs.common.schema import BaseSchema, Flag, Number, Text, Timestamp, Whole
from libs.common.topology import DEFAULT_POOL, POOL_NAME
from services.scheduler.run_store import Executor, Finished, Held, LogChunk, Prepared, Report, Started, SyncRequest
from services.scheduler.schemas import Identifier
from services.scheduler.states import LogStream, Outcome

_MAX_NAME = 255
_MAX_MESSAGE = 8192
_INT = validate.Range(-(2**31), 2**31 - 1)
_SECONDS = validate.Range(min=0)


class Message(fields.String):
    """An engine's words may hold anything; what PostgreSQL can't is shown as an escape."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:
        text = super()._deserialize(value, *args, **kwargs) or ""
        return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()[:_MAX_MESSAGE]


class Bytes(fields.Field[bytes]):
    """Bytes as base64."""

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> bytes:
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, TypeError, ValueError) as error:
            raise ma.ValidationError("Must be base64.") from error


class _LenientSchema(BaseSchema):
    class Meta:
        unknown = ma.EXCLUDE


class ExecutorSchema(_LenientSchema):
    id = Text(required=True, validate=validate.Length(1, _MAX_NAME))
    boot_id = Text(required=True, validate=validate.Length(1, _MAX_NAME))
    engine_id = Text(required=True, validate=validate.Length(1, _MAX_NAME))
    host = Text(load_default="", validate=validate.Length(max=_MAX_NAME))
    # An executor of an earlier version knows of one pool only.
    pools = fields.List(
        Text(validate=validate.Regexp(POOL_NAME)),
        load_default=lambda: [DEFAULT_POOL],
        validate=validate.Length(1, 100),
    )
    slots = Whole(required=True, validate=validate.Range(0, 100_000))
    running = Whole(required=True, validate=validate.Range(0, 100_000))

    @ma.post_load
    def make(self, data: dict[str, Any], **_kwargs: Any) -> Executor:
        return Executor(**data)


class ClaimSchema(_LenientSchema):
    run_id = Identifier(required=True)


class QuestionSchema(_LenientSchema):
    run_id = Identifier(required=True)


class HeldSchema(_LenientSchema):
    run_id = Identifier(required=True)
    epoch = Whole(required=True, validate=_INT)
    pulling = Flag(load_default=False)

    @ma.post_load
    def make(self, data: dict[str, Any], **_kwargs: Any) -> Held:
        return Held(**data)


class ReportSchema(_LenientSchema):
    run_id = Identifier(required=True)
    epoch = Whole(required=True, validate=_INT)
    event = Text(required=True, validate=validate.OneOf(["preparing", "started", "finished"]))
    outcome = Text(load_default=None, allow_none=True, validate=validate.OneOf(list(Outcome)))
    reason = Text(load_default=None, allow_none=True)
    exit_code = Whole(load_default=None, allow_none=True, validate=_INT)
    error_msg = Message(load_default=None, allow_none=True)
    result = Bytes(load_default=None, allow_none=True)
    started_at = Timestamp(load_default=None, allow_none=True)
    finished_at = Timestamp(load_default=None, allow_none=True)
    image_digest = Text(load_default=None, allow_none=True)
    container_id = Text(load_default=None, allow_none=True)
    max_memory_mb = Whole(load_default=None, allow_none=True, validate=_INT)
    cpu_seconds = Number(load_default=None, allow_none=True, validate=_SECONDS)
    pulled_seconds = Number(load_default=None, allow_none=True, validate=_SECONDS)

    @ma.post_load
    def make(self, data: dict[str, Any], **_kwargs: Any) -> Report:
        event = data.pop("event")
        if event == "finished":
            if data["outcome"] is None:
                raise ma.ValidationError("A finished run has an outcome.", "outcome")
            return Finished(**data | {"outcome": Outcome(data["outcome"])})
        shared = {name: data[name] for name in ("run_id", "epoch", "container_id")}
        if event == "started":
            shared |= {name: data[name] for name in ("started_at", "image_digest", "pulled_seconds")}
            return Started(**shared)
        return Prepared(**shared)


class LogChunkSchema(_LenientSchema):
    run_id = Identifier(required=True)
    epoch = Whole(required=True, validate=_INT)
    seq = Whole(required=True, validate=validate.Range(0, 2**63 - 1))
    stream = Text(required=True, validate=validate.OneOf(list(LogStream)))
    at = Timestamp(required=True)
    data = Bytes(required=True)

    @ma.post_load
    def make(self, data: dict[str, Any], **_kwargs: Any) -> LogChunk:
        return LogChunk(**data | {"stream": LogStream(data["stream"])})


class SyncSchema(_LenientSchema):
    executor = fields.Nested(ExecutorSchema, required=True)
    claims = fields.List(fields.Nested(ClaimSchema), load_default=list)
    held = fields.List(fields.Nested(HeldSchema), load_default=list)
    reports = fields.List(fields.Nested(ReportSchema), load_default=list)
    logs = fields.List(fields.Nested(LogChunkSchema), load_default=list)
    questions = fields.List(fields.Nested(QuestionSchema), load_default=list)

    @ma.post_load
    def make(self, data: dict[str, Any], **_kwargs: Any) -> SyncRequest:
        ids = {name: [entry["run_id"] for entry in data[name]] for name in ("claims", "questions")}
        return SyncRequest(**data | ids)
