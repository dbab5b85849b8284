"""An app with everything that services share, and routes that go wrong in every way."""

from __future__ import annotations

from typing import Any

import marshmallow as ma
import psycopg
import pytest
import structlog
from flask import Flask, abort, request
from flask.testing import FlaskClient
from psycopg_pool import PoolTimeout

from libs.common import errors
from libs.common.flask_app import create_service_app
from libs.common.health import Check
from libs.common.openapi import ApiBlueprint, create_api, read_json
from libs.common.paging import PageQuery
from libs.common.schema import BaseSchema, Text, Whole


class Thing(BaseSchema):
    """Something with a name."""

    name = Text(required=True)
    how_many = Whole(load_default=1)


RAISED: dict[str, Exception] = {
    "api-error": errors.Conflict("Taken.", code="taken"),
    "busy": errors.TooManyRequests("Slowly.", retry_after_seconds=7),
    "unauthorized": errors.Unauthorized("Who?"),
    "invalid": errors.Invalid("No.", errors={"name": ["Bad."]}),
    "validation": ma.ValidationError({"aField": ["Bad."]}),
    "nested": ma.ValidationError({"limits": {"cpus": ["Bad."], "_schema": ["Odd."]}, "args": {1: ["No."]}}),
    "operational": psycopg.OperationalError("server closed the connection: password=hush"),
    "interface": psycopg.InterfaceError("the connection is closed"),
    "pool": PoolTimeout("no connection"),
    "defect": ZeroDivisionError("hush"),
}


@pytest.fixture
def app() -> Flask:
    app = create_service_app("example", checks=[Check("one", lambda: None)], max_body_bytes=1000)
    api = create_api(app, title="Example")
    routes = ApiBlueprint("things", __name__)

    @routes.post("/api/things/")
    @routes.arguments(Thing)
    @routes.response(201, Thing)
    def create(body: dict[str, Any]) -> dict[str, Any]:
        return body

    @routes.get("/api/things/<uuid:thing_id>")
    @routes.response(200, Thing)
    def get(thing_id: object) -> dict[str, Any]:
        return {"name": str(thing_id)}

    @routes.get("/api/things/")
    @routes.arguments(PageQuery, location="query")
    @routes.response(200)
    def list_things(query: dict[str, Any]) -> dict[str, Any]:
        return {"limit": query["limit"]}

    api.register_blueprint(routes)

    @app.get("/raise/<name>")
    def fail(name: str) -> str:
        raise RAISED[name]

    @app.get("/abort/<int:status>")
    def leave(status: int) -> str:
        abort(status)

    @app.post("/echo")
    def echo() -> dict[str, Any]:
        return {"body": read_json(request)}

    return app


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("api-error", 409, "taken"),
        ("busy", 429, "rate_limited"),
        ("unauthorized", 401, "unauthorized"),
        ("invalid", 422, "invalid_fields"),
        ("validation", 422, "invalid_fields"),
        ("operational", 503, "database_unavailable"),
        ("interface", 503, "database_unavailable"),
        ("pool", 503, "database_unavailable"),
        ("defect", 500, "internal_error"),
    ],
)
def test_every_error_becomes_a_problem_document(client: FlaskClient, name: str, status: int, code: str):
    response = client.get(f"/raise/{name}", headers={"X-Request-Id": "abc"})

    body = response.get_json()
    assert response.status_code == status
    assert response.content_type == "application/problem+json"
    assert {"type", "title", "status", "detail", "code", "requestId"} <= set(body)
    assert (body["status"], body["code"], body["requestId"]) == (status, code, "abc")
    assert "hush" not in response.text


def test_errors_carry_the_headers_that_belong_to_them(client: FlaskClient):
    assert client.get("/raise/busy").headers["Retry-After"] == "7"
    assert client.get("/raise/pool").headers["Retry-After"]
    assert client.get("/raise/unauthorized").headers["WWW-Authenticate"] == "Bearer"
    assert client.get("/raise/invalid").get_json()["errors"] == {"name": ["Bad."]}
    assert "POST" in client.delete("/echo").headers["Allow"]


@pytest.mark.parametrize("status", [400, 404, 405, 413, 415, 418, 429, 503])
def test_werkzeugs_own_errors_become_problem_documents(client: FlaskClient, status: int):
    response = client.get(f"/abort/{status}")

    assert (response.status_code, response.get_json()["status"]) == (status, status)
    assert response.content_type == "application/problem+json"


def test_unknown_paths_and_methods_are_problem_documents(client: FlaskClient):
    answers = [client.get("/nowhere"), client.put("/api/things/"), client.get("/api/things/x")]

    assert [answer.status_code for answer in answers] == [404, 405, 404]
    assert all(answer.content_type == "application/problem+json" for answer in answers)
    assert answers[0].get_json()["detail"] == "There is nothing at this path."


@pytest.mark.parametrize("path", ["/api/things", "/api/things/"])
def test_collections_answer_with_and_without_the_final_slash(client: FlaskClient, path: str):
    response = client.post(path, json={"name": "x"})

    assert (response.status_code, response.get_json()) == (201, {"name": "x", "howMany": 1})


def test_a_body_over_the_limit_is_413(client: FlaskClient):
    response = client.post("/api/things/", json={"name": "x" * 2000})

    assert (response.status_code, response.get_json()["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"{'a': 1}",
        b'{"name": NaN}',
        b'{"name": Infinity}',
        b"\xff",
        b'{"a":1}x',
        b"[" * 900,
        b'"\x01"',
        b"\xef\xbb\xbf{}",
    ],
)
@pytest.mark.parametrize("path", ["/api/things/", "/echo"])
def test_what_is_no_json_is_400(client: FlaskClient, path: str, data: bytes):
    response = client.post(path, data=data, content_type="application/json")

    assert (response.status_code, response.get_json()["code"]) == (400, "malformed_json")


@pytest.mark.parametrize("data", [b"null", b"[]", b"5", b'"x"', b"[{}]"])
def test_json_that_is_no_object_is_422(client: FlaskClient, data: bytes):
    response = client.post("/api/things/", data=data, content_type="application/json")

    assert response.status_code == 422
    assert set(response.get_json()["errors"]) == {"body"}


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "application/xml", "multipart/form-data"])
def test_a_body_that_does_not_say_it_is_json_is_415(client: FlaskClient, content_type: str | None):
    response = client.post("/api/things/", data=b'{"name": "x"}', content_type=content_type)

    assert (response.status_code, response.get_json()["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "application/vnd.thing+json"])
def test_other_names_of_json_are_taken(client: FlaskClient, content_type: str):
    response = client.post("/api/things/", data=b'{"name": "x"}', content_type=content_type)

    assert response.status_code == 201


@pytest.mark.parametrize(
    ("body", "field"),
    [({}, "name"), ({"name": "x", "more": 1}, "more"), ({"name": "x", "howMany": "1"}, "howMany")],
)
def test_invalid_fields_are_named_without_where_they_came_from(client: FlaskClient, body, field: str):
    response = client.post("/api/things/", json=body)

    assert response.status_code == 422
    assert set(response.get_json()["errors"]) == {field}


def test_a_message_about_something_inside_a_field_says_where(client: FlaskClient):
    answer = client.get("/raise/nested").get_json()

    assert answer["errors"] == {"limits": ["cpus: Bad.", "Odd."], "args": ["1: No."]}


def test_an_unknown_query_parameter_is_422(client: FlaskClient):
    response = client.get("/api/things/?limit=3&sort=name")

    assert response.status_code == 422
    assert set(response.get_json()["errors"]) == {"sort"}


def test_the_request_id_is_in_every_answer_and_made_when_it_is_not_acceptable(client: FlaskClient):
    kept = client.get("/livez", headers={"X-Request-Id": "my-id_1.2"})
    made = client.get("/nowhere", headers={"X-Request-Id": "not acceptable!"})

    assert kept.headers["X-Request-Id"] == "my-id_1.2"
    assert made.headers["X-Request-Id"] == made.get_json()["requestId"] != "not acceptable!"


def test_each_request_is_logged_once_with_its_route_and_health_is_not(client: FlaskClient):
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        client.get("/api/things/6f1e8a4e-0b1c-4d5e-8f00-000000000000", headers={"X-Request-Id": "abc"})
        client.get("/livez")
        client.get("/readyz")
        client.get("/metrics")

    (line,) = [line for line in lines if line["event"] == "http_request"]
    assert (line["route"], line["status"], line["request_id"]) == ("/api/things/<uuid:thing_id>", 200, "abc")


def test_a_defect_is_logged_as_an_error(client: FlaskClient):
    with structlog.testing.capture_logs() as lines:
        client.get("/raise/defect")

    assert [line["log_level"] for line in lines if line["event"] == "unhandled_error"] == ["error"]


def test_metrics_count_requests_by_route_and_not_by_path(client: FlaskClient):
    client.get("/api/things/6f1e8a4e-0b1c-4d5e-8f00-000000000000")
    client.get("/some/unknown/path")

    text = client.get("/metrics").text
    assert 'route="/api/things/<uuid:thing_id>"' in text
    assert 'route="unmatched"' in text
    assert "some/unknown" not in text


def test_every_reference_of_the_api_document_leads_somewhere(client: FlaskClient):
    document = client.get("/openapi.json").get_json()

    for reference in _references(document):
        target: Any = document
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]
        assert target


def test_the_api_document_describes_errors_as_problems(client: FlaskClient):
    document = client.get("/openapi.json").get_json()

    default = document["paths"]["/api/things/"]["post"]["responses"]["default"]
    assert default == {"$ref": "#/components/responses/PROBLEM"}
    assert set(document["components"]["responses"]["PROBLEM"]["content"]) == {"application/problem+json"}


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [found for value in node.values() for found in _references(value)]
    if isinstance(node, list):
        return [found for value in node for found in _references(value)]
    return []
