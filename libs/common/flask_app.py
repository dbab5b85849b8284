"""What every HTTP service of ours has in common: request ids, error bodies, access log, metrics, health."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import structlog
from flask import Flask, Response, g, request

from libs.common.health import Check, read_readiness
from libs.common.http_errors import register_error_handlers
from libs.common.metrics import HTTP_DURATION, HTTP_REQUESTS, render_metrics
from libs.common.request_id import HEADER, accept_request_id

log = structlog.get_logger()

MAX_BODY_BYTES = 1024 * 1024
_HEALTH_PATHS = ("/livez", "/readyz", "/metrics")


def create_service_app(service: str, *, checks: Sequence[Check], max_body_bytes: int = MAX_BODY_BYTES) -> Flask:
    """A Flask app named after its service, ready for its blueprints.

    `checks` are the service's dependencies, shown by `/readyz`. A body over `max_body_bytes` is a 413.
    """
    app = Flask(service, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = max_body_bytes
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.url_map.redirect_defaults = False
    app.json.sort_keys = False  # type: ignore[attr-defined]
    register_error_handlers(app)
    _track_requests(app, service)
    _serve_health(app, checks)
    return app


def _track_requests(app: Flask, service: str) -> None:
    @app.before_request
    def begin() -> None:
        g.started = time.perf_counter()
        g.request_id = accept_request_id(request.headers.get(HEADER))
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=g.request_id)

    @app.after_request
    def finish(response: Response) -> Response:
        response.headers[HEADER] = g.request_id
        if request.path in _HEALTH_PATHS:
            return response
        elapsed = time.perf_counter() - g.started
        route = request.url_rule.rule if request.url_rule else "unmatched"
        HTTP_REQUESTS.labels(service, request.method, route, response.status_code).inc()
        HTTP_DURATION.labels(service, request.method, route).observe(elapsed)
        log.info(
            "http_request",
            method=request.method,
            route=route,
            status=response.status_code,
            duration_ms=round(elapsed * 1000, 1),
        )
        return response


def _serve_health(app: Flask, checks: Sequence[Check]) -> None:
    @app.get("/livez")
    def livez() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz")
    def readyz() -> Response:
        status, body = read_readiness(checks)
        return _json(status, body)

    @app.get("/metrics")
    def metrics() -> Response:
        body, content_type = render_metrics()
        return Response(body, content_type=content_type)


def _json(status: int, body: Any) -> Response:
    return Response(json.dumps(body), status=status, content_type="application/json")
