"""The public task API."""

from __future__ import annotations

from typing import Any

from flask import Response, g, request

from libs.common.openapi import ApiBlueprint, require_no_body
from libs.common.tokens import Identity, TokenVerifier, require_identity
from services.scheduler.creations import REPLAYED_HEADERS, IdempotencySchema, read_once, to_answer, to_response
from services.scheduler.idempotency import Answer
from services.scheduler.paths import SECURITY, TASK_ID, read_task_id
from services.scheduler.receipts import to_receipt
from services.scheduler.schemas import (
    NewTaskSchema,
    RunsSchema,
    TaskSchema,
)
from services.scheduler.tasks import Tasks

_CREATED = {"Location": {"schema": {"type": "string"}, "description": "The new task."}, **REPLAYED_HEADERS}

_TASK = TaskSchema()


def create_routes(*, tasks: Tasks, verifier: TokenVerifier) -> ApiBlueprint:
    routes = ApiBlueprint("tasks", __name__, description="Containers to run, now or at a set time")

    def identify() -> Identity:
        return require_identity(verifier, request)

    @routes.post("/api/tasks/")
    @routes.doc(security=SECURITY, operationId="createTask")
    @routes.arguments(IdempotencySchema(), location="headers")
    @routes.arguments(NewTaskSchema())
    @routes.response(201, TaskSchema, headers=_CREATED)
    def create_task(headers: dict[str, Any], fields: dict[str, Any]) -> Response:
        """Create a task"""
        once = read_once(g.identity, headers, _answer_task)
        return to_response(tasks.create(g.identity, fields, request_id=g.request_id, once=once))

    @routes.get("/api/tasks/<task_id>", parameters=TASK_ID)
    @routes.doc(security=SECURITY, operationId="getTask")
    @routes.response(200, TaskSchema)
    def get_task(task_id: str) -> dict[str, Any]:
        """Get a task"""
        return tasks.get(g.identity, read_task_id(task_id))

    @routes.delete("/api/tasks/<task_id>", parameters=TASK_ID)
    @routes.doc(security=SECURITY, operationId="deleteTask")
    @routes.response(204)
    def delete_task(task_id: str) -> None:
        """Stop a task if it runs, and remove it"""
        tasks.delete(g.identity, read_task_id(task_id))

    @routes.post("/api/tasks/<task_id>/cancel", parameters=TASK_ID)
    @routes.doc(security=SECURITY, operationId="cancelTask")
    @routes.response(202, TaskSchema)
    @routes.alt_response(200, schema=TaskSchema, description="It had ended already.")
    def cancel_task(task_id: str) -> tuple[dict[str, Any], int]:
        """Stop a task and keep it"""
        require_no_body(request)
        task, is_changed = tasks.cancel(g.identity, read_task_id(task_id))
        return task, 202 if is_changed else 200

    @routes.post("/api/tasks/<task_id>/rerun", parameters=TASK_ID)
    @routes.doc(security=SECURITY, operationId="rerunTask")
    @routes.arguments(IdempotencySchema(), location="headers")
    @routes.response(201, TaskSchema, headers=_CREATED)
    def rerun_task(headers: dict[str, Any], task_id: str) -> Response:
        """Create a new task with the definition of this one, due now"""
        require_no_body(request)
        once = read_once(g.identity, headers, _answer_task)
        return to_response(tasks.rerun(g.identity, read_task_id(task_id), request_id=g.request_id, once=once))

    @routes.get("/api/tasks/<task_id>/runs", parameters=TASK_ID)
    @routes.doc(security=SECURITY, operationId="listRuns")
    @routes.response(200, RunsSchema)
    def list_runs(task_id: str) -> dict[str, Any]:
        """List a task's runs with their receipts, newest first"""
        return {"items": [to_receipt(run) for run in tasks.list_runs(g.identity, read_task_id(task_id))]}

    # Before the arguments are read: without a token nobody learns what a body should look like.
    @routes.before_request
    def require_token() -> None:
        g.identity = identify()

    return routes


def _answer_task(created: list[dict[str, Any]]) -> Answer:
    (task,) = created
    return to_answer(_TASK, task, location=f"/api/tasks/{task['id']}")
