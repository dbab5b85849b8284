"""The executors' API. Only services with the service token get here, and the gateway never forwards it."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify, request

from libs.common.config import Secret
from libs.common.openapi import read_json
from libs.common.service_auth import require_service_token
from services.scheduler.internal_schemas import SyncSchema
from services.scheduler.sync import ExecutorSync

# A sync carries many runs' results and logs; an executor keeps it well below this.
MAX_SYNC_BYTES = 64 * 1024 * 1024


def create_internal_routes(*, executor_sync: ExecutorSync, token: Secret) -> Blueprint:
    routes = Blueprint("internal", __name__)
    schema = SyncSchema()

    @routes.before_request
    def require_token() -> None:
        require_service_token(token)
        request.max_content_length = MAX_SYNC_BYTES

    @routes.post("/internal/executors/sync")
    def sync() -> Response:
        return jsonify(executor_sync.sync(schema.load(read_json(request))))

    return routes
