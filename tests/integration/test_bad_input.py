from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.client import Api, User, expect, expect_problem, in_seconds, new_task, sign_up

pytestmark = pytest.mark.integration

JSON = {"Content-Type": "application/json"}
BODY_PATHS = ("/api/tasks/", "/api/users/login", "/api/users/signup")


@pytest.fixture(scope="module")
def careless(url: str) -> Iterator[User]:
    """A user who only makes mistakes: at the end they must not own a single task."""
    user = sign_up(url, name="Careless")
    yield user
    assert expect(user.api.get("/api/tasks/"), 200)["items"] == []


@pytest.mark.parametrize("path", BODY_PATHS)
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"image": }', b"\xff\xfe{}", b"'image'", b'{"a": NaN}', b'{"a": Infinity}', b"{} {}",
     b"[" * 10_000, b"[" * 10_000 + b"]" * 10_000, b'{"a":' * 10_000 + b"1" + b"}" * 10_000],
    ids=["empty", "cut off", "no value", "no utf-8", "quotes", "NaN", "Infinity", "twice", "deep, cut off",
         "deep lists", "deep objects"],
)  # fmt: skip
def test_malformed_json_is_400(careless: User, path: str, body: bytes):
    expect_problem(careless.api.call("POST", path, data=body, headers=JSON), 400)


@pytest.mark.parametrize("path", BODY_PATHS)
@pytest.mark.parametrize("body", [[], "text", 7, None, True])
def test_json_that_is_no_object_is_422(careless: User, path: str, body: Any):
    expect_problem(careless.api.call("POST", path, data=json.dumps(body), headers=JSON), 422)


@pytest.mark.parametrize("path", BODY_PATHS)
@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/xml"]
)
def test_a_body_that_does_not_say_it_is_json_is_415(careless: User, path: str, content_type: str | None):
    headers = {} if content_type is None else {"Content-Type": content_type}

    expect_problem(careless.api.call("POST", path, data=b'{"image": "busybox"}', headers=headers), 415)


@pytest.mark.parametrize("path", BODY_PATHS)
def test_a_body_of_two_megabytes_is_413(careless: User, path: str):
    body = json.dumps(new_task("echo", environment={"A": "x" * 2_000_000})).encode()

    expect_problem(careless.api.call("POST", path, data=body, headers=JSON), 413)
    chunks = (body[start : start + 65536] for start in range(0, len(body), 65536))
    expect_problem(careless.api.call("POST", path, data=chunks, headers=JSON), 413)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image", None),
        ("image", ""),
        ("image", 7),
        ("image", "x" * 256),
        ("image", "has spaces"),
        ("image", "nul\0"),
        ("image", "lower/UPPER"),
        ("command", ["echo"]),
        ("command", "nul\0"),
        ("args", "not a list"),
        ("args", [1]),
        ("args", [None]),
        ("args", ["nul\0"]),
        ("entrypoint", "sh"),
        ("environment", []),
        ("environment", {"1A": "x"}),
        ("environment", {"A=B": "x"}),
        ("environment", {"": "x"}),
        ("environment", {"A": 1}),
        ("environment", {"A": None}),
        ("environment", {"A": "nul\0"}),
        ("environment", {"A": "\ud800"}),
        ("environment", {"A": "x" * 32_769}),
        ("environment", {f"A{number}": "x" for number in range(101)}),
        ("scheduledAt", "tomorrow"),
        ("scheduledAt", 1_700_000_000),
        ("scheduledAt", "2030-01-01"),
        ("scheduledAt", "2030-01-01T00:00:00"),
        ("scheduledAt", "9999-12-31T23:59:59Z"),
        ("scheduledAt", "9999-12-31T23:59:59-23:59"),
        ("scheduledAt", "0001-01-01T00:00:00+23:59"),
        pytest.param("scheduledAt", in_seconds(-120), id="scheduledAt-two minutes ago"),
        ("name", "x" * 101),
        ("name", 7),
        ("name", "nul\0"),
        ("labels", ["a"]),
        ("labels", {"a": 1}),
        ("labels", {f"l{number}": "x" for number in range(21)}),
        ("timeoutSeconds", 0),
        ("timeoutSeconds", 604_801),
        ("timeoutSeconds", "60"),
        ("timeoutSeconds", 1.5),
        ("timeoutSeconds", True),
        ("timeoutSeconds", 10**30),
        ("resources", {"cpus": 0.04}),
        ("resources", {"cpus": 64.1}),
        ("resources", {"cpus": "1"}),
        ("resources", {"memoryMb": 15}),
        ("resources", {"memoryMb": 1_048_577}),
        ("resources", {"memoryMb": 16.5}),
        ("resources", {"pids": 0}),
        ("resources", {"gpus": 1}),
        ("resources", []),
        ("network", "host"),
        ("network", None),
        ("userId", "me"),
        ("privileged", True),
        ("volumes", ["/:/host"]),
        ("Image", "busybox"),
    ],
)
def test_a_field_that_is_wrong_is_named(careless: User, field: str, value: Any):
    body = new_task("true") | {field: value}

    problem = expect_problem(careless.api.post("/api/tasks/", body), 422)

    assert field in problem["errors"]


def test_a_body_without_an_image_says_so(careless: User):
    assert "image" in expect_problem(careless.api.post("/api/tasks/", {}), 422)["errors"]


def test_sixty_seconds_ago_counts_as_now(user: User):
    assert user.api.run("true", scheduledAt=in_seconds(-50))["status"] == "completed"


@pytest.mark.parametrize(
    "unknown",
    ["00000000-0000-4000-8000-000000000000", "not-an-id", "1", "-1", "nul%00", "%F0%9F%90%B3", "a" * 500,
     "00000000-0000-4000-8000-00000000000g", "%7B00000000-0000-4000-8000-000000000000%7D"],
)  # fmt: skip
def test_an_unknown_task_is_404_however_it_is_named(careless: User, unknown: str):
    for method, suffix in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/runs"), ("GET", "/logs")):
        expect_problem(careless.api.call(method, f"/api/tasks/{unknown}{suffix}"), 404)


@pytest.mark.parametrize(
    "path",
    ["/", "/api", "/api/", "/api/nothing", "/internal/sessions/check", "/internal/executors/sync",
     "/api/users/%2e%2e/%2e%2e/internal/sessions/check", "/api/tasks/..%2finternal%2fexecutors%2fsync",
     "//internal/executors/sync", "/api//tasks"],
)  # fmt: skip
def test_what_is_not_published_is_404(careless: User, path: str):
    expect_problem(careless.api.get(path), 404)
    expect_problem(careless.api.post(path, {}), 404)


def test_unknown_query_parameters_are_422(careless: User):
    problem = expect_problem(careless.api.get("/api/tasks/", params={"colour": "red"}), 422)

    assert "colour" in problem["errors"]


def test_a_header_of_odd_bytes_is_no_500(anyone: Api):
    for value in ("Bearer é", "Bearer \x01", "Bearer " + "x" * 8000):
        response = anyone.get("/api/tasks/", headers={"Authorization": value.encode("latin-1")})
        assert response.status_code in (400, 401)
