"""The public API's bodies and queries, with their limits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import marshmallow as ma
from marshmallow import fields, validate

from libs.common.paging import QueryWhole
from libs.common.schema import BaseSchema, Number, Text, Timestamp, Whole
from libs.common.topology import DEFAULT_POOL, POOL_NAME
from services.scheduler.images import MAX_IMAGE_LENGTH, is_image_reference
from services.scheduler.states import LogStream, Network, OnExecutorLost, Reason, RunStatus, TaskStatus

# Linux takes no longer argument (MAX_ARG_STRLEN, its terminating NUL counted).
MAX_ARGUMENT_BYTES = 128 * 1024 - 1
MAX_ARGUMENTS = 1000
MAX_VARIABLES = 100
MAX_VARIABLE_BYTES = 32 * 1024
MAX_VARIABLE_NAME = 255
MAX_NAME = 100
MAX_LABELS = 20
MAX_TIMEOUT_SECONDS = 604_800
MAX_STOP_GRACE_SECONDS = 3600
MAX_PIDS = 32_768
DEFAULT_PIDS = 128
MAX_TAIL = 1_000_000
MAX_EVENT_ID = 2**63 - 1
MAX_ATTEMPTS = 20
DEFAULT_BACKOFF_SECONDS = 5
DEFAULT_MAX_BACKOFF_SECONDS = 300
MAX_BACKOFF_SECONDS = 86_400
MAX_EXIT_CODE = 255
MAX_CONCURRENCY = 1000
MAX_QUEUE_TTL_SECONDS = 31_536_000
_WHOLE_MAX = 2**31 - 1

_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What the system itself tells each container (docs/task-model.md, What a container is told).
_OWN_VARIABLES = ("TASK_ID", "RUN_ID", "TASK_ATTEMPT", "TASK_SCHEDULED_AT")


def parse_id(text: str) -> UUID | None:
    """The UUID in its usual spelling; None for anything else that Python would also take for one."""
    return UUID(text) if _UUID.fullmatch(text) else None


class Identifier(fields.Field[UUID]):
    """A UUID with its hyphens."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("metadata", {}).update({"type": "string", "format": "uuid"})
        super().__init__(**kwargs)

    def _serialize(self, value: UUID | None, *_args: Any, **_kwargs: Any) -> str | None:
        return None if value is None else str(value)

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> UUID:
        found = parse_id(value) if isinstance(value, str) else None
        if found is None:
            raise ma.ValidationError("Must be a UUID.")
        return found


class TextBytes(validate.Validator):
    """Bounds a text by the bytes of its UTF-8, which is what the kernel counts."""

    def __init__(self, most: int) -> None:
        self._most = most

    def __call__(self, text: str) -> str:
        if len(text.encode()) > self._most:
            raise ma.ValidationError(f"Must not be longer than {self._most} bytes of UTF-8.")
        return text


class AtMost(validate.Validator):
    """Bounds how many entries a map has."""

    def __init__(self, most: int) -> None:
        self._most = most

    def __call__(self, entries: Mapping[str, Any]) -> Mapping[str, Any]:
        if len(entries) > self._most:
            raise ma.ValidationError(f"Must not have more than {self._most} entries.")
        return entries


def _check_image(text: str) -> None:
    if not is_image_reference(text):
        raise ma.ValidationError(
            f"Must be an image reference of at most {MAX_IMAGE_LENGTH} characters, like busybox:latest."
        )


def _check_variable_name(text: str) -> None:
    if not _VARIABLE_NAME.fullmatch(text) or len(text) > MAX_VARIABLE_NAME:
        raise ma.ValidationError(
            f"Must be letters, digits and _, not begin with a digit, and be at most {MAX_VARIABLE_NAME} long."
        )
    if text in _OWN_VARIABLES:
        raise ma.ValidationError("Is set by the system in every container; give yours another name.")


def _check_label_key(text: str) -> None:
    if ":" in text:
        raise ma.ValidationError("Must not contain ':', which parts key and value in a filter.")


def _argument(**kwargs: Any) -> Text:
    return Text(validate=TextBytes(MAX_ARGUMENT_BYTES), **kwargs)


class ResourcesSchema(BaseSchema):
    cpus = Number(validate=validate.Range(0.05, 64), metadata={"description": "Cores. Default 1."})
    memory_mb = Whole(validate=validate.Range(16, 1_048_576), metadata={"description": "MiB. Default 256."})
    pids = Whole(load_default=DEFAULT_PIDS, validate=validate.Range(1, MAX_PIDS))


class RetrySchema(BaseSchema):
    max_attempts = Whole(load_default=1, validate=validate.Range(1, MAX_ATTEMPTS))
    backoff_seconds = Whole(
        load_default=DEFAULT_BACKOFF_SECONDS,
        validate=validate.Range(0, MAX_BACKOFF_SECONDS),
        metadata={
            "description": "Pause after the first failure; doubled with each, less up to a quarter at random."
        },
    )
    max_backoff_seconds = Whole(
        validate=validate.Range(0, MAX_BACKOFF_SECONDS),
        metadata={"description": f"Default {DEFAULT_MAX_BACKOFF_SECONDS}, or backoffSeconds if that is more."},
    )
    on_exit_codes = fields.List(
        Whole(validate=validate.Range(1, MAX_EXIT_CODE)),
        load_default=None,
        allow_none=True,
        validate=validate.Length(1, MAX_EXIT_CODE),
        metadata={
            "description": "Try again only after these exit codes. null: after exit_nonzero, timeout, oom_killed, "
            "image_pull_failed and engine_error."
        },
    )

    @ma.post_load
    def fill(self, data: dict[str, Any], **_kwargs: Any) -> dict[str, Any]:
        least = data["backoff_seconds"]
        most = data.setdefault("max_backoff_seconds", max(least, DEFAULT_MAX_BACKOFF_SECONDS))
        if most < least:
            raise ma.ValidationError("Must not be less than backoffSeconds.", "maxBackoffSeconds")
        return data


# Loaded once: making a schema takes longer than loading a whole task.
_DEFAULT_RETRY: dict[str, Any] = RetrySchema().load({})


class ConcurrencySchema(BaseSchema):
    """At most `limit` tasks of this `key` of this user run at a time."""

    key = Text(required=True, validate=validate.Length(1, MAX_NAME))
    limit = Whole(required=True, validate=validate.Range(1, MAX_CONCURRENCY))


class NewTaskSchema(BaseSchema):
    """What a task is created from."""

    image = Text(
        required=True,
        validate=_check_image,
        metadata={"maxLength": MAX_IMAGE_LENGTH, "example": "busybox:latest"},
    )
    command = Text(
        load_default=None,
        allow_none=True,
        validate=[validate.Length(min=1), TextBytes(MAX_ARGUMENT_BYTES)],
        metadata={"description": "One word of the command line: never split, no shell.", "example": "echo"},
    )
    args = fields.List(
        _argument(),
        load_default=list,
        validate=validate.Length(max=MAX_ARGUMENTS),
        metadata={"description": "The words after the command, as they are."},
    )
    entrypoint = fields.List(
        _argument(),
        load_default=None,
        allow_none=True,
        validate=validate.Length(min=1, max=MAX_ARGUMENTS),
        metadata={"description": "In the place of the image's own."},
    )
    environment = fields.Dict(
        keys=Text(validate=_check_variable_name),
        values=Text(validate=TextBytes(MAX_VARIABLE_BYTES)),
        load_default=dict,
        validate=AtMost(MAX_VARIABLES),
        metadata={"maxProperties": MAX_VARIABLES, "description": "Values arrive byte for byte."},
    )
    scheduled_at = Timestamp(
        load_default=None,
        allow_none=True,
        metadata={"description": "When to start; without it now. At most 60 s ago, at most 5 years ahead."},
    )
    name = Text(load_default=None, allow_none=True, validate=validate.Length(1, MAX_NAME))
    labels = fields.Dict(
        keys=Text(validate=[validate.Length(1, MAX_NAME), _check_label_key]),
        values=Text(validate=validate.Length(max=MAX_NAME)),
        load_default=dict,
        validate=AtMost(MAX_LABELS),
        metadata={"maxProperties": MAX_LABELS},
    )
    priority = Whole(load_default=5, validate=validate.Range(0, 9), metadata={"description": "9 goes first."})
    timeout_seconds = Whole(
        load_default=3600,
        validate=validate.Range(1, MAX_TIMEOUT_SECONDS),
        metadata={"description": "Limit on the run; pulling the image doesn't count."},
    )
    stop_grace_seconds = Whole(
        load_default=10,
        validate=validate.Range(0, MAX_STOP_GRACE_SECONDS),
        metadata={"description": "From SIGTERM to SIGKILL."},
    )
    resources = fields.Nested(ResourcesSchema, load_default=lambda: {"pids": DEFAULT_PIDS})
    network = Text(load_default=Network.EGRESS, validate=validate.OneOf(list(Network)))
    on_executor_lost = Text(
        load_default=OnExecutorLost.RETRY,
        validate=validate.OneOf(list(OnExecutorLost)),
        metadata={
            "description": "When the engine that runs it is silent for EXECUTOR_LOST_SECONDS: `retry` gives the "
            "attempt up and makes another, although the first may still run there; `hold` waits for the engine."
        },
    )
    retry = fields.Nested(RetrySchema, load_default=_DEFAULT_RETRY.copy)
    queue_ttl_seconds = Whole(
        load_default=None,
        allow_none=True,
        validate=validate.Range(1, MAX_QUEUE_TTL_SECONDS),
        metadata={"description": "Give up when no executor has taken it so long after it was due."},
    )
    concurrency = fields.Nested(ConcurrencySchema, load_default=None, allow_none=True)
    pool = Text(
        load_default=DEFAULT_POOL,
        validate=validate.Regexp(POOL_NAME, error="Must be 1 to 50 lower-case letters, digits, '-', '_' or '.'."),
        metadata={"description": "Only executors that serve this pool take it."},
    )
    user_id = Identifier(load_default=None, allow_none=True, metadata={"description": "Admins only."})


class WaitingSchema(BaseSchema):
    code = fields.String()
    text = fields.String()


class TaskSchema(BaseSchema):
    """A task as it is answered."""

    id = Identifier(required=True)
    user_id = Identifier(required=True)
    schedule_id = Identifier(allow_none=True, metadata={"description": "The schedule that made it."})
    status = fields.String(required=True, validate=validate.OneOf(list(TaskStatus)))
    reason = fields.String(allow_none=True, validate=validate.OneOf(list(Reason)))
    waiting = fields.Nested(WaitingSchema, allow_none=True)
    position = fields.Integer(
        allow_none=True,
        metadata={
            "description": "Its place in the line of its pool, as far as can be told now; 1 is next, and 1001 "
            "stands for anything beyond 1000. null when it doesn't wait in line, and in lists."
        },
    )
    name = fields.String(allow_none=True)
    labels = fields.Dict(keys=fields.String(), values=fields.String())
    image = fields.String(required=True)
    command = fields.String(allow_none=True)
    args = fields.List(fields.String())
    entrypoint = fields.List(fields.String(), allow_none=True)
    environment = fields.Dict(keys=fields.String(), values=fields.String())
    scheduled_at = Timestamp()
    timeout_seconds = fields.Integer()
    stop_grace_seconds = fields.Integer()
    priority = fields.Integer()
    resources = fields.Nested(ResourcesSchema)
    network = fields.String(validate=validate.OneOf(list(Network)))
    on_executor_lost = fields.String(validate=validate.OneOf(list(OnExecutorLost)))
    retry = fields.Nested(RetrySchema)
    queue_ttl_seconds = fields.Integer(allow_none=True)
    concurrency = fields.Nested(ConcurrencySchema, allow_none=True)
    pool = fields.String()
    result = fields.String(
        allow_none=True,
        metadata={
            "description": "The end of what was printed to standard output; other bytes than UTF-8 as \\xNN."
        },
    )
    error_msg = fields.String(allow_none=True, metadata={"description": "What went wrong, and what to do."})
    exit_code = fields.Integer(allow_none=True)
    attempts = fields.Integer(
        metadata={"description": "How often it was tried; runs that were lost with their executor don't count."}
    )
    created_at = Timestamp()
    queued_at = Timestamp(allow_none=True)
    started_at = Timestamp(allow_none=True)
    finished_at = Timestamp(allow_none=True)
    updated_at = Timestamp()


class LimitsSchema(BaseSchema):
    cpus = fields.Float(required=True)
    memory_mb = fields.Integer(required=True)
    pids = fields.Integer(required=True)
    timeout_seconds = fields.Integer(required=True)
    stop_grace_seconds = fields.Integer(required=True)


def _phase(text: str) -> fields.Float:
    return fields.Float(required=True, allow_none=True, metadata={"description": text})


class TimingsSchema(BaseSchema):
    """Where a run's time went. null: not over yet, never got there, or not known."""

    waited_seconds = _phase("From its due time until an executor took it.")
    pulled_seconds = _phase("Getting the image; 0 when it was there.")
    created_seconds = _phase("The rest until its command began.")
    ran_seconds = _phase("Until its command had ended.")
    collected_seconds = _phase("Until its end, output and result were kept.")


class RunSchema(BaseSchema):
    number = fields.Integer(required=True)
    status = fields.String(required=True, validate=validate.OneOf(list(RunStatus)))
    reason = fields.String(allow_none=True, validate=validate.OneOf(list(Reason)))
    exit_code = fields.Integer(allow_none=True)
    error_msg = fields.String(allow_none=True)
    executor_id = fields.String(allow_none=True)
    engine_id = fields.String(allow_none=True)
    image_digest = fields.String(allow_none=True)
    queued_at = Timestamp()
    started_at = Timestamp(allow_none=True)
    finished_at = Timestamp(allow_none=True)
    max_memory_mb = fields.Integer(
        allow_none=True,
        metadata={"description": "The most MiB that counted against memoryMb at one time; null when not known."},
    )
    cpu_seconds = fields.Float(
        allow_none=True, metadata={"description": "Processor time, of all cores together; null when not known."}
    )
    limits = fields.Nested(LimitsSchema, required=True)
    timings = fields.Nested(TimingsSchema, required=True)


class RunsSchema(BaseSchema):
    items = fields.List(fields.Nested(RunSchema), required=True)


class QueryFlag(fields.Boolean):
    """`true` or `false` in a query string, as Python writes them too, and `1` and `0`; `?follow` is true."""

    truthy = {"true", "True", "1", ""}  # noqa: RUF012  marshmallow declares it so.
    falsy = {"false", "False", "0"}  # noqa: RUF012


class LogQuerySchema(BaseSchema):
    attempt = QueryWhole(
        load_default=None,
        validate=validate.Range(1, _WHOLE_MAX),
        metadata={"description": "Of which attempt. Without it the last one, and a stream goes on with the next."},
    )
    stream = fields.String(load_default="both", validate=validate.OneOf([*LogStream, "both"]))
    tail = QueryWhole(
        load_default=None,
        validate=validate.Range(0, MAX_TAIL),
        metadata={"description": "Only so many of the last lines; of a stream, the lines that are there already."},
    )
    timestamps = QueryFlag(load_default=False, metadata={"description": "The time in front of each line of text."})
    follow = QueryFlag(
        load_default=None,
        metadata={
            "description": "true: server-sent events until the end, as with `Accept: text/event-stream`. "
            "false: always text."
        },
    )


class LogHeaderSchema(BaseSchema):
    class Meta:
        unknown = ma.EXCLUDE

    last_event_id = QueryWhole(
        data_key="Last-Event-ID",
        load_default=None,
        validate=validate.Range(0, MAX_EVENT_ID),
        metadata={"description": "Of a stream that broke off: go on behind this event."},
    )

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        """A header's name stays as it is."""
