"""How requests that create are read and answered over HTTP, whatever they create."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from flask import Response, request
from marshmallow import Schema, fields, validate

from libs.common.openapi import read_json
from libs.common.schema import BaseSchema
from libs.common.tokens import Identity
from services.scheduler.idempotency import Answer, Once, RequestKey, Result, make_fingerprint

_REPLAYED = "Idempotency-Replayed"
# As flask-smorest documents them.
REPLAYED_HEADERS = {_REPLAYED: {"schema": {"type": "string"}, "description": "true when it was done before."}}


class IdempotencySchema(BaseSchema):
    """The header of requests that create."""

    idempotency_key = fields.String(
        data_key="Idempotency-Key",
        load_default=None,
        validate=validate.Regexp(r"[\x21-\x7e]{1,128}\Z", error="Must be 1 to 128 visible ASCII characters."),
        metadata={
            "description": "The same request with the same key within 24 hours is done once, and gets the first "
            "answer again, with Idempotency-Replayed: true."
        },
    )


def read_once(identity: Identity, headers: Mapping[str, Any], write: Callable[[Result], Answer]) -> Once[Result]:
    """The request in hand, with its key if its `headers` (IdempotencySchema) have one."""
    key = headers["idempotency_key"]
    if key is None:
        return Once(None, write)
    body = read_json(request) if request.get_data() else None
    fingerprint = make_fingerprint(request.method, request.path, body)
    return Once(RequestKey(user_id=identity.user_id, key=key, fingerprint=fingerprint), write)


def to_answer(schema: Schema, result: Any, *, status: int = 201, location: str | None = None) -> Answer:
    body = json.dumps(schema.dump(result), separators=(",", ":")).encode()
    return Answer(status, body, location)


def to_response(answer: Answer) -> Response:
    response = Response(answer.body, status=answer.status, content_type="application/json")
    if answer.location is not None:
        response.headers["Location"] = answer.location
    if answer.is_replayed:
        response.headers[_REPLAYED] = "true"
    return response
