"""The public API of many tasks at once: batches, lists, counts, and what is done to all that a filter finds."""

from __future__ import annotations

import threading
from typing import Any

from flask import Response, g, request

from libs.common.errors import Unavailable
from libs.common.openapi import ApiBlueprint
from libs.common.paging import Page
from libs.common.tokens import TokenVerifier, require_identity
from services.scheduler.bulk import BulkTasks, Counts
from services.scheduler.bulk_schemas import (
    BulkSchema,
    CountsSchema,
    CreatedTasksSchema,
    NewTasksSchema,
    StatsQuerySchema,
    StatsSchema,
    TaskPageSchema,
    TaskQuerySchema,
)
from services.scheduler.creations import REPLAYED_HEADERS, IdempotencySchema, read_once, to_answer, to_response
from services.scheduler.idempotency import Answer
from services.scheduler.lists import TaskLists
from services.scheduler.paths import SECURITY

# The gateway takes as much at this path.
MAX_BATCH_BYTES = 8 * 1024 * 1024

# A large one takes some 40 MB from its body to its answer, and Python works on one at a time anyway.
BATCHES_AT_ONCE = 2
BATCH_WAIT_SECONDS = 10.0

_BATCH_PATH = "/api/tasks/batch"
_TASKS = CreatedTasksSchema()
_COUNTS = CountsSchema()


def create_bulk_routes(*, lists: TaskLists, bulk: BulkTasks, verifier: TokenVerifier) -> ApiBlueprint:
    routes = ApiBlueprint("bulk", __name__, description="Many tasks at once")

    @routes.post(_BATCH_PATH)
    @routes.doc(security=SECURITY, operationId="createTasks")
    @routes.arguments(IdempotencySchema(), location="headers")
    @routes.arguments(NewTasksSchema())
    @routes.response(201, CreatedTasksSchema, headers=REPLAYED_HEADERS)
    def create_tasks(headers: dict[str, Any], fields: dict[str, Any]) -> Response:
        """Create up to 1000 tasks: all of them, or none when one is invalid. The body may have 8 MiB"""
        once = read_once(g.identity, headers, _answer_tasks)
        return to_response(bulk.create(g.identity, fields["tasks"], request_id=g.request_id, once=once))

    @routes.get("/api/tasks/")
    @routes.doc(security=SECURITY, operationId="listTasks")
    @routes.arguments(TaskQuerySchema(), location="query")
    @routes.response(200, TaskPageSchema)
    def list_tasks(query: dict[str, Any]) -> Page:
        """List tasks, newest first: one's own; for an admin everybody's"""
        return lists.list_page(g.identity, query)

    @routes.get("/api/tasks/stats")
    @routes.doc(security=SECURITY, operationId="countTasks")
    @routes.arguments(StatsQuerySchema(), location="query")
    @routes.response(200, StatsSchema)
    def count_tasks(query: dict[str, Any]) -> dict[str, Any]:
        """Count tasks by status: one's own; for an admin everybody's"""
        return lists.count(g.identity, query)

    @routes.post("/api/tasks/cancel")
    @routes.doc(security=SECURITY, operationId="cancelTasks")
    @routes.arguments(BulkSchema())
    @routes.response(200, CountsSchema)
    def cancel_tasks(body: dict[str, Any]) -> Counts:
        """Stop tasks, by ids or by a filter, and keep them"""
        return bulk.cancel(g.identity, body)

    @routes.post("/api/tasks/rerun")
    @routes.doc(security=SECURITY, operationId="rerunTasks")
    @routes.arguments(IdempotencySchema(), location="headers")
    @routes.arguments(BulkSchema())
    @routes.response(200, CountsSchema, headers=REPLAYED_HEADERS)
    def rerun_tasks(headers: dict[str, Any], body: dict[str, Any]) -> Response:
        """Create new tasks with the definitions of others, named by ids or by a filter"""
        once = read_once(g.identity, headers, _answer_counts)
        return to_response(bulk.rerun(g.identity, body, request_id=g.request_id, once=once))

    # Before the arguments are read: without a token nobody learns what a body should look like.
    @routes.before_request
    def require_token() -> None:
        g.identity = require_identity(verifier, request)

    _bound_batches(routes)
    return routes


def _bound_batches(routes: ApiBlueprint) -> None:
    turns = threading.BoundedSemaphore(BATCHES_AT_ONCE)

    # Before the body is read, which waits in the socket meanwhile.
    @routes.before_request
    def take_turn() -> None:
        if request.path.rstrip("/") != _BATCH_PATH:
            return
        request.max_content_length = MAX_BATCH_BYTES
        if not turns.acquire(timeout=BATCH_WAIT_SECONDS):
            raise Unavailable("Too many batches at once. Try again.", retry_after_seconds=2)
        g.has_turn = True

    @routes.teardown_request
    def give_turn_back(_error: BaseException | None) -> None:
        if g.pop("has_turn", False):
            turns.release()


def _answer_tasks(created: list[dict[str, Any]]) -> Answer:
    return to_answer(_TASKS, {"items": created})


def _answer_counts(counts: Counts) -> Answer:
    return to_answer(_COUNTS, counts, status=200)
