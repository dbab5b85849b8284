"""The public API of output: one path, as text or as a stream of events."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from flask import Response, g, request

from libs.common.openapi import ApiBlueprint
from libs.common.tokens import TokenVerifier, require_identity
from services.scheduler.log_events import CONTENT_TYPE
from services.scheduler.log_reading import LogReading, Selection
from services.scheduler.paths import SECURITY, TASK_ID, read_task_id
from services.scheduler.schemas import LogHeaderSchema, LogQuerySchema
from services.scheduler.states import LogStream

# How long the gateway may not read. It cuts its own clients off earlier, so this is for a gateway that is stuck.
_SEND_SECONDS = 60.0

_TEXT = "text/plain"
_CONTENTS = {
    _TEXT: {"schema": {"type": "string", "format": "binary"}},
    CONTENT_TYPE: {"schema": {"type": "string"}},
}


def create_log_routes(*, logs: LogReading, verifier: TokenVerifier) -> ApiBlueprint:
    routes = ApiBlueprint("output", __name__, description="What tasks print")

    @routes.get("/api/tasks/<task_id>/logs", parameters=TASK_ID)
    @routes.doc(
        security=SECURITY,
        operationId="getLogs",
        responses={"200": {"description": "What was printed, byte for byte, or events.", "content": _CONTENTS}},
    )
    @routes.arguments(LogQuerySchema(), location="query")
    @routes.arguments(LogHeaderSchema(), location="headers")
    def get_logs(query: dict[str, Any], headers: dict[str, Any], task_id: str) -> Response:
        """Read what an attempt printed, or follow it until its end"""
        wanted = Selection(attempt=query["attempt"], streams=_list_streams(query["stream"]), tail=query["tail"])
        if _wants_events(query["follow"]):
            return _answer_events(logs, read_task_id(task_id), wanted, headers["last_event_id"])
        text = logs.read_text(g.identity, read_task_id(task_id), wanted, timestamps=query["timestamps"])
        # Printed by somebody's container: a browser must not take it for a page.
        return Response(
            text, content_type=f"{_TEXT}; charset=utf-8", headers={"X-Content-Type-Options": "nosniff"}
        )

    # Before the arguments are read: without a token nobody learns what a query should look like.
    @routes.before_request
    def require_token() -> None:
        g.identity = require_identity(verifier, request)
        _bound_sends()

    return routes


def _answer_events(logs: LogReading, task_id: UUID, wanted: Selection, last_event_id: int | None) -> Response:
    # Whatever stands between us and the client must not gather events.
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    follow = logs.follow(g.identity, task_id, wanted, last_event_id=last_event_id)
    if request.method == "HEAD":
        follow.close()
        return Response(content_type=CONTENT_TYPE, headers=headers)
    return Response(follow, content_type=CONTENT_TYPE, headers=headers)


def _wants_events(follow: bool | None) -> bool:
    if follow is not None:
        return follow
    return request.accept_mimetypes.best_match([_TEXT, CONTENT_TYPE], default=_TEXT) == CONTENT_TYPE


def _list_streams(name: str) -> list[LogStream]:
    return list(LogStream) if name == "both" else [LogStream(name)]


def _bound_sends() -> None:
    connection = request.environ.get("gunicorn.socket")
    if connection is not None:
        connection.settimeout(_SEND_SECONDS)
