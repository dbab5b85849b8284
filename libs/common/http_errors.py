"""The one place where errors become answers: RFC 9457 problem documents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import psycopg
import structlog
from flask import Flask, Response
from marshmallow import ValidationError
from werkzeug.exceptions import HTTPException

from libs.common.errors import ApiError
from libs.common.postgres import DATABASE_DOWN

log = structlog.get_logger()

PROBLEM_JSON = "application/problem+json"

_CODES = {
    400: "malformed_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
    422: "invalid_fields",
}
# In the place of Werkzeug's texts, which speak to somebody with a browser.
_DETAILS = {
    404: "There is nothing at this path.",
    405: "This path doesn't take this method; see the Allow header.",
    413: "The body is larger than this path takes.",
}


def problem(
    status: int,
    *,
    title: str,
    detail: str,
    code: str,
    errors: Any = None,
    retry_after_seconds: int | None = None,
) -> Response:
    """A problem document; `requestId` comes from the request in hand (libs/common/request_id)."""
    request_id = structlog.contextvars.get_contextvars().get("request_id")
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "requestId": request_id,
    }
    if errors is not None:
        body["errors"] = errors
    response = Response(json.dumps(body), status=status, content_type=PROBLEM_JSON)
    if retry_after_seconds is not None:
        response.headers["Retry-After"] = str(retry_after_seconds)
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def register_error_handlers(app: Flask) -> None:
    app.register_error_handler(ApiError, _answer_api_error)
    app.register_error_handler(ValidationError, _answer_validation_error)
    app.register_error_handler(HTTPException, answer_http_exception)
    for database_down in DATABASE_DOWN:
        app.register_error_handler(database_down, _answer_database_down)
    app.register_error_handler(Exception, _answer_defect)


def _answer_api_error(error: ApiError) -> Response:
    return problem(
        error.status,
        title=error.title,
        detail=error.detail,
        code=error.code,
        errors=error.errors,
        retry_after_seconds=error.retry_after_seconds,
    )


def _answer_validation_error(error: ValidationError) -> Response:
    return _invalid(error.normalized_messages())  # type: ignore[no-untyped-call]


def answer_http_exception(error: HTTPException) -> Response:
    """Flask's and webargs' own errors, with their headers (`Allow` of a 405) kept."""
    status = error.code or 500
    if status == 422:
        messages = getattr(error, "data", {}).get("messages", {})
        return _invalid(messages)
    phrase = HTTPStatus(status).phrase
    detail = _DETAILS.get(status) or error.description or phrase
    response = problem(status, title=phrase, detail=detail, code=_CODES.get(status, "error"))
    for name, value in error.get_headers():
        if name.lower() not in ("content-type", "content-length"):
            response.headers[name] = value
    return response


def _invalid(messages: Any) -> Response:
    # webargs nests the messages below where the argument came from: json, query, …
    locations = {"json", "query", "headers", "path"}
    if isinstance(messages, dict) and len(messages) == 1 and set(messages) <= locations:
        (inner,) = messages.values()
        messages = inner if isinstance(inner, dict) else {"body": inner}
    return problem(
        422,
        title="Unprocessable Content",
        detail="The request has invalid fields; see errors.",
        code="invalid_fields",
        errors={_name(key): list(_list_messages(inner)) for key, inner in messages.items()},
    )


def _name(key: Any) -> str:
    return "body" if key == "_schema" else str(key)


def _list_messages(messages: Any, path: str = "") -> Iterator[str]:
    """The messages of one field; one about something inside it says where: `cpus: Not a valid number.`"""
    if isinstance(messages, dict):
        for key, inner in messages.items():
            yield from _list_messages(inner, path if key == "_schema" else f"{path}.{key}".lstrip("."))
    elif isinstance(messages, list):
        for message in messages:
            yield from _list_messages(message, path)
    else:
        yield f"{path}: {messages}" if path else str(messages)


def _answer_database_down(error: Exception) -> Response:
    if isinstance(error, psycopg.errors.DiskFull):
        log.error("database_disk_full")
        detail, retry_after_seconds = "The database has no room left. Nothing was changed; try again later.", 30
    else:
        log.warning("database_unavailable", error=type(error).__name__)
        # An answer that was lost may have been a yes.
        detail = "The database doesn't answer. Try again; if it matters, look first whether it was done."
        retry_after_seconds = 2
    return problem(
        503,
        title="Service Unavailable",
        detail=detail,
        code="database_unavailable",
        retry_after_seconds=retry_after_seconds,
    )


def _answer_defect(error: Exception) -> Response:
    log.error("unhandled_error", exc_info=error)
    return problem(
        500,
        title="Internal Server Error",
        detail="This is a defect of the service. Report it with the request id.",
        code="internal_error",
    )
