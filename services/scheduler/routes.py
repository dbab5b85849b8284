"""The public task API."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import structlog
from flask import Response, g, request

from libs.common.errors import NotFound
from libs.common.openapi import ApiBlueprint
from libs.common.paging import Page
from libs.common.tokens import Identity, TokenVerifier, require_identity
from services.scheduler.receipts import to_receipt
from services.scheduler.schemas import (
    LogQuerySchema,
    NewTaskSchema,
    RunsSchema,
    TaskPageSchema,
    TaskQuerySchema,
    TaskSchema,
    parse_id,
)
from services.scheduler.tasks import Tasks

_TASK_ID = [{"name": "task_id", "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}]
_SECURITY: list[dict[str, list[str]]] = [{"bearer": []}]


def create_routes(*, tasks: Tasks, verifier: TokenVerifier) -> ApiBlueprint:
    routes = ApiBlueprint("tasks", __name__, description="Containers to run, now or at a set time")

    def identify() -> Identity:
        return require_identity(verifier, request)

    @routes.post("/api/tasks/")
    @routes.doc(security=_SECURITY, operationId="createTask")
    @routes.arguments(NewTaskSchema())
    @routes.response(201, TaskSchema)
    def create_task(fields: dict[str, Any]) -> tuple[dict[str, Any], int, dict[str, str]]:
        """Create a task"""
        task = tasks.create(g.identity, fields, request_id=g.request_id)
        return task, 201, {"Location": f"/api/tasks/{task['id']}"}

    @routes.get("/api/tasks/")
    @routes.doc(security=_SECURITY, operationId="listTasks")
    @routes.arguments(TaskQuerySchema(), location="query")
    @routes.response(200, TaskPageSchema)
    def list_tasks(query: dict[str, Any]) -> Page:
        """List tasks, newest first: one's own; for an admin everybody's"""
        return tasks.list_page(g.identity, query)

    @routes.get("/api/tasks/<task_id>", parameters=_TASK_ID)
    @routes.doc(security=_SECURITY, operationId="getTask")
    @routes.response(200, TaskSchema)
    def get_task(task_id: str) -> dict[str, Any]:
        """Get a task"""
        return tasks.get(g.identity, _task_id(task_id))

    @routes.delete("/api/tasks/<task_id>", parameters=_TASK_ID)
    @routes.doc(security=_SECURITY, operationId="deleteTask")
    @routes.response(204)
    def delete_task(task_id: str) -> None:
        """Stop a task if it runs, and remove it"""
        tasks.delete(g.identity, _task_id(task_id))

    @routes.post("/api/tasks/<task_id>/cancel", parameters=_TASK_ID)
    @routes.doc(security=_SECURITY, operationId="cancelTask")
    @routes.response(202, TaskSchema)
    @routes.alt_response(200, schema=TaskSchema, description="It had ended already.")
    def cancel_task(task_id: str) -> tuple[dict[str, Any], int]:
        """Stop a task and keep it"""
        task, is_changed = tasks.cancel(g.identity, _task_id(task_id))
        return task, 202 if is_changed else 200

    @routes.get("/api/tasks/<task_id>/runs", parameters=_TASK_ID)
    @routes.doc(security=_SECURITY, operationId="listRuns")
    @routes.response(200, RunsSchema)
    def list_runs(task_id: str) -> dict[str, Any]:
        """List a task's runs with their receipts, newest first"""
        return {"items": [to_receipt(run) for run in tasks.list_runs(g.identity, _task_id(task_id))]}

    @routes.get("/api/tasks/<task_id>/logs", parameters=_TASK_ID)
    @routes.doc(security=_SECURITY, operationId="getLogs")
    @routes.arguments(LogQuerySchema(), location="query")
    @routes.response(200, {"type": "string", "format": "binary"}, content_type="text/plain")
    def get_logs(query: dict[str, Any], task_id: str) -> Response:
        """Read what a run printed, as plain text, byte for byte"""
        data = tasks.read_log(
            g.identity,
            _task_id(task_id),
            attempt=query["attempt"],
            stream=query["stream"],
            tail=query["tail"],
        )
        # Printed by somebody's container: a browser must not take it for a page.
        headers = {"X-Content-Type-Options": "nosniff"}
        return Response(data, content_type="text/plain; charset=utf-8", headers=headers)

    # Before the arguments are read: without a token nobody learns what a body should look like.
    @routes.before_request
    def require_token() -> None:
        g.identity = identify()

    return routes


def _task_id(text: str) -> UUID:
    task_id = parse_id(text)
    if task_id is None:
        raise NotFound("There is no such task.")
    structlog.contextvars.bind_contextvars(task_id=str(task_id))
    return task_id
