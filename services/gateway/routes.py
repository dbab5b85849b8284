"""What the gateway answers itself: the system's health, the API's document, and a page that shows it."""

from __future__ import annotations

import json
from importlib import resources

from flask import Blueprint, Response

from services.gateway.api_document import ApiDocument
from services.gateway.health_report import HealthReport

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Everything on the page comes from here; path below /api/docs → file and content type.
_PAGE_FILES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/docs.css": ("docs.css", "text/css; charset=utf-8"),
}


def create_routes(*, health: HealthReport, document: ApiDocument) -> Blueprint:
    blueprint = Blueprint("gateway", __name__)

    @blueprint.get("/api/health")
    def read_health() -> Response:
        status, report = health.read()
        response = Response(json.dumps(report), status=status, content_type="application/json")
        if status == 503:
            response.headers["Retry-After"] = "2"
        return response

    @blueprint.get("/api/openapi.json")
    def read_document() -> Response:
        return Response(document.read(), content_type="application/json")

    for path, (name, content_type) in _PAGE_FILES.items():
        _serve_file(blueprint, f"/api/docs{path}", name, content_type)
    return blueprint


def _serve_file(blueprint: Blueprint, path: str, name: str, content_type: str) -> None:
    content = (resources.files("services.gateway") / "docs" / name).read_bytes()

    def read_file() -> Response:
        response = Response(content, content_type=content_type)
        response.headers["Content-Security-Policy"] = _PAGE_POLICY
        response.headers["Cache-Control"] = "no-cache"
        return response

    blueprint.add_url_rule(path, endpoint=name.replace(".", "_"), view_func=read_file)
