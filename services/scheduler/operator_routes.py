"""The public API of what admins do: quotas of users, and executors."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from flask import g, request

from libs.common.errors import NotFound
from libs.common.openapi import ApiBlueprint, require_no_body
from libs.common.tokens import TokenVerifier, require_identity
from services.scheduler.executors import Executors, to_view
from services.scheduler.operator_schemas import (
    ExecutorPageSchema,
    ExecutorQuerySchema,
    ExecutorSchema,
    NewQuotaSchema,
    QuotaSchema,
)
from services.scheduler.quota_store import Quota
from services.scheduler.quotas import Quotas
from services.scheduler.schemas import parse_id

_USER_ID = [{"name": "user_id", "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}]
_EXECUTOR_ID = [{"name": "executor_id", "in": "path", "required": True, "schema": {"type": "string"}}]
_SECURITY: list[dict[str, list[str]]] = [{"bearer": []}]


def create_quota_routes(*, quotas: Quotas, verifier: TokenVerifier) -> ApiBlueprint:
    routes = ApiBlueprint("quotas", __name__, description="How much one user may have and do")

    @routes.get("/api/users/<user_id>/quota", parameters=_USER_ID)
    @routes.doc(security=_SECURITY, operationId="getQuota")
    @routes.response(200, QuotaSchema)
    def get_quota(user_id: str) -> dict[str, Any]:
        """Get a user's quota: one's own; for an admin anybody's"""
        return _to_quota_view(*quotas.get(g.identity, _user_id(user_id)))

    @routes.put("/api/users/<user_id>/quota", parameters=_USER_ID)
    @routes.doc(security=_SECURITY, operationId="putQuota")
    @routes.arguments(NewQuotaSchema())
    @routes.response(200, QuotaSchema)
    def put_quota(quota: Quota, user_id: str) -> dict[str, Any]:
        """Set a user's quota (admins)"""
        return _to_quota_view(*quotas.put(g.identity, _user_id(user_id), quota))

    _require_token(routes, verifier)
    return routes


def create_executor_routes(*, executors: Executors, verifier: TokenVerifier) -> ApiBlueprint:
    routes = ApiBlueprint("executors", __name__, description="Who runs the containers (admins)")

    @routes.get("/api/executors/")
    @routes.doc(security=_SECURITY, operationId="listExecutors")
    @routes.arguments(ExecutorQuerySchema(), location="query")
    @routes.response(200, ExecutorPageSchema)
    def list_executors(query: dict[str, Any]) -> dict[str, Any]:
        """List executors, in the order of their ids"""
        page, next_after = executors.list_page(g.identity, after=query["cursor"], limit=query["limit"])
        return {"items": [to_view(executor) for executor in page], "next_cursor": next_after}

    @routes.post("/api/executors/<executor_id>/drain", parameters=_EXECUTOR_ID)
    @routes.doc(security=_SECURITY, operationId="drainExecutor")
    @routes.response(200, ExecutorSchema)
    def drain_executor(executor_id: str) -> Any:
        """Let an executor finish what it runs, and take nothing more"""
        require_no_body(request)
        return to_view(executors.drain(g.identity, executor_id))

    @routes.post("/api/executors/<executor_id>/undrain", parameters=_EXECUTOR_ID)
    @routes.doc(security=_SECURITY, operationId="undrainExecutor")
    @routes.response(200, ExecutorSchema)
    def undrain_executor(executor_id: str) -> Any:
        """Let an executor take runs again"""
        require_no_body(request)
        return to_view(executors.undrain(g.identity, executor_id))

    _require_token(routes, verifier)
    return routes


def _require_token(routes: ApiBlueprint, verifier: TokenVerifier) -> None:
    # Before the arguments are read: without a token nobody learns what a body should look like.
    @routes.before_request
    def require_token() -> None:
        g.identity = require_identity(verifier, request)


def _user_id(text: str) -> UUID:
    user_id = parse_id(text)
    if user_id is None:
        raise NotFound("There is no such user.")
    return user_id


def _to_quota_view(quota: Quota, effective: Quota) -> dict[str, Any]:
    return {
        "running": quota.running,
        "queued": quota.queued,
        "created_per_minute": quota.created_per_minute,
        "effective": effective,
    }
