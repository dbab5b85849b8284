"""One OpenAPI document of the whole API, made from the services' own."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from libs.common.errors import ApiError, Unavailable
from services.gateway.upstream import Call, Upstream

log = structlog.get_logger()

REUSE_SECONDS = 60.0
RETRY_SECONDS = 2.0

Document = dict[str, Any]

_JSON_OBJECT = {"application/json": {"schema": {"type": "object"}}}
OWN_PATHS: Document = {
    "/api/health": {
        "get": {
            "tags": ["operators"],
            "summary": "The state of every service, in one answer",
            "security": [],
            "responses": {
                "200": {"description": "Every part is ready.", "content": _JSON_OBJECT},
                "503": {"description": "A part is missing; the same body says which.", "content": _JSON_OBJECT},
            },
        }
    },
    "/.well-known/jwks.json": {
        "get": {
            "tags": ["operators"],
            "summary": "The public keys that verify access tokens",
            "security": [],
            "responses": {"200": {"description": "A JSON Web Key Set.", "content": _JSON_OBJECT}},
        }
    },
    "/api/openapi.json": {
        "get": {
            "tags": ["operators"],
            "summary": "This document",
            "security": [],
            "responses": {"200": {"description": "OpenAPI 3.", "content": _JSON_OBJECT}},
        }
    },
}


class ApiDocument:
    """Fetches the documents, merges them and keeps the result for a minute."""

    def __init__(self, parts: Sequence[Upstream], *, reuse_seconds: float = REUSE_SECONDS) -> None:
        self._parts = parts
        self._reuse_seconds = reuse_seconds
        self._lock = threading.Lock()
        self._documents: dict[str, Document] = {}
        self._merged = b""
        self._expires_at = float("-inf")

    def read(self) -> bytes:
        """The document as JSON. While a service is away its part is the last one seen; Unavailable without one."""
        with self._lock:
            if time.monotonic() > self._expires_at:
                self._refresh()
            return self._merged

    def _refresh(self) -> None:
        is_complete = True
        for part in self._parts:
            try:
                status, document = part.fetch_json(Call("GET", "/openapi.json"))
            except ApiError:
                status, document = 0, None
            if status == 200 and isinstance(document, dict):
                self._documents[part.name] = document
            else:
                is_complete = False
        if len(self._documents) < len(self._parts):
            raise Unavailable("The API's document isn't complete yet: a service is away.", retry_after_seconds=2)
        self._merged = json.dumps(merge_documents(self._documents)).encode()
        self._expires_at = time.monotonic() + (self._reuse_seconds if is_complete else RETRY_SECONDS)


def merge_documents(documents: Mapping[str, Document]) -> Document:
    """One document of the services' published paths, by service name.

    Components that two services define differently under one name get their service's name in front.
    """
    merged: Document = {
        "openapi": "3.0.3",
        "info": {
            "title": "Task Runner",
            "version": "v1",
            "description": "Runs commands in containers, now or at a set time.",
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "tags": [{"name": "operators"}],
        "paths": dict(OWN_PATHS),
        "components": {
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The token of a login or signup, or a personal access token (trp_…).",
                }
            }
        },
    }
    for service, document in documents.items():
        _add(merged, _without_clashes(merged, document, service))
    return merged


def _add(merged: Document, document: Document) -> None:
    for path, item in document.get("paths", {}).items():
        if path.startswith(("/api/", "/.well-known/")):
            merged["paths"].setdefault(path, {}).update(item)
    for kind, components in document.get("components", {}).items():
        if kind != "securitySchemes":
            merged["components"].setdefault(kind, {}).update(components)
    known = {tag["name"] for tag in merged["tags"]}
    merged["tags"] += [tag for tag in document.get("tags", []) if tag["name"] not in known]


def _without_clashes(merged: Document, document: Document, service: str) -> Document:
    renamed: dict[str, str] = {}
    components: Document = {}
    for kind, members in document.get("components", {}).items():
        taken = merged["components"].get(kind, {})
        components[kind] = {}
        for name, member in members.items():
            clashes = name in taken and taken[name] != member
            new_name = f"{service.title()}{name}" if clashes else name
            components[kind][new_name] = member
            if clashes:
                renamed[f"#/components/{kind}/{name}"] = f"#/components/{kind}/{new_name}"
    result: Document = _rename_references({**document, "components": components}, renamed)
    return result


def _rename_references(node: Any, renamed: Mapping[str, str]) -> Any:
    if isinstance(node, dict):
        return {
            key: renamed.get(value, value) if key == "$ref" else _rename_references(value, renamed)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [_rename_references(member, renamed) for member in node]
    return node
