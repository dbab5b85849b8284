from __future__ import annotations

from typing import Any

from services.gateway.api_document import merge_documents


def operation(schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"responses": {"200": {"description": "ok", "content": content}}}


def document(path: str, *, schema: str = "Problem", definition: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "paths": {path: {"get": operation(schema)}},
        "components": {"schemas": {schema: definition or {"type": "object"}}},
        "tags": [{"name": "things"}],
    }


def test_paths_and_components_of_all_services_stand_in_one_document():
    merged = merge_documents({"users": document("/api/users/"), "scheduler": document("/api/tasks/")})

    assert {"/api/users/", "/api/tasks/", "/api/health"} <= set(merged["paths"])
    assert set(merged["components"]["schemas"]) == {"Problem"}
    assert merged["servers"] == [{"url": "/"}]
    assert merged["security"] == [{"bearer": []}]
    assert [tag["name"] for tag in merged["tags"]] == ["operators", "things"]


def test_what_is_not_published_is_not_documented():
    merged = merge_documents({"users": document("/internal/sessions/check")})

    assert "/internal/sessions/check" not in merged["paths"]


def test_two_definitions_of_one_name_are_kept_apart():
    users = document("/api/users/", schema="Page", definition={"type": "object"})
    scheduler = document("/api/tasks/", schema="Page", definition={"type": "array"})

    merged = merge_documents({"users": users, "scheduler": scheduler})

    assert merged["components"]["schemas"] == {"Page": {"type": "object"}, "SchedulerPage": {"type": "array"}}
    assert merged["paths"]["/api/users/"]["get"] == operation("Page")
    assert merged["paths"]["/api/tasks/"]["get"] == operation("SchedulerPage")
