from __future__ import annotations

import http.client
import json
import socket
import threading
from urllib.parse import urlsplit

import pytest
import requests

from services.gateway.tests.stubs import StubHandler, StubServices, TokenMaker, running_gateway, unique
from tests.polling import wait_until

pytestmark = pytest.mark.component


@pytest.fixture
def caller(tokens: TokenMaker) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens.make()}"}


def connect(gateway: str, *, timeout: float = 5) -> socket.socket:
    parts = urlsplit(gateway)
    return socket.create_connection((str(parts.hostname), parts.port or 80), timeout=timeout)


def send_raw(gateway: str, request: bytes) -> http.client.HTTPResponse:
    """Send these bytes and nothing else; the answer with its body read."""
    with connect(gateway) as connection:
        connection.sendall(request)
        response = http.client.HTTPResponse(connection)
        response.begin()
        response.body = response.read()  # type: ignore[attr-defined]
        return response


def assert_problem(response: requests.Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    body = response.json()
    assert body["code"] == code
    assert body["status"] == status
    assert body["requestId"] == response.headers["X-Request-Id"]


def test_a_request_reaches_the_service_as_it_was_sent(gateway, services: StubServices, caller):
    body = '{"image": "busybox", "args": ["$(id)", "ü"]}'.encode()
    headers = {**caller, "Content-Type": "application/json", "Idempotency-Key": "k1", "X-Request-Id": "my-id.1"}

    response = requests.post(f"{gateway}/api/tasks/?a=1&a=%20b", data=body, headers=headers)

    assert response.status_code == 200
    assert response.headers["X-Request-Id"] == "my-id.1"
    sent = services.last
    assert (sent.method, sent.target, sent.body) == ("POST", "/api/tasks/?a=1&a=%20b", body)
    assert sent.header("Content-Type") == "application/json"
    assert sent.header("Idempotency-Key") == "k1"
    assert sent.header("X-Request-Id") == "my-id.1"
    assert sent.header("Authorization") == caller["Authorization"]


def test_forged_headers_stay_outside(gateway, services: StubServices, caller):
    forged = {
        "X-User-Id": "00000000-0000-0000-0000-000000000000",
        "X-User-Roles": "admin",
        "X_User_Id": "x",
        "X-Forwarded-For": "6.6.6.6",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-User": "admin",
        "Forwarded": "for=6.6.6.6",
        "Cookie": "session=1",
        "TE": "trailers",
        "X-Original-URL": "/internal/sessions/check",
    }

    requests.get(f"{gateway}/api/tasks/", headers={**caller, **forged})

    names = {name.lower() for name, _ in services.last.headers}
    assert names <= {
        "host",
        "accept",
        "accept-encoding",
        "user-agent",
        "authorization",
        "x-request-id",
        "x-forwarded-for",
        "x-forwarded-proto",
    }
    assert services.last.header("X-Forwarded-For") == "127.0.0.1"
    assert services.last.header("X-Forwarded-Proto") == "http"


def test_of_the_answers_headers_only_allowed_ones_come_back(gateway, services: StubServices, caller):
    sent = {
        "Location": "/api/tasks/1",
        "ETag": '"1"',
        "Set-Cookie": "a=b",
        "Server": "secret/1.0",
        "X-Powered-By": "x",
        "Keep-Alive": "timeout=5",
        "X-Request-Id": "theirs",
    }
    services.answers["/api/tasks"] = lambda handler: handler.answer(201, {"id": "1"}, sent)

    response = requests.post(f"{gateway}/api/tasks", headers={**caller, "X-Request-Id": "mine"})

    assert response.status_code == 201
    assert response.headers["Location"] == "/api/tasks/1"
    assert response.headers["ETag"] == '"1"'
    assert response.headers["X-Request-Id"] == "mine"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "no-store"
    assert not {"set-cookie", "x-powered-by", "keep-alive"} & {name.lower() for name in response.headers}
    assert "secret" not in response.headers.get("Server", "")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_every_method_is_passed_on(gateway, services: StubServices, caller, method):
    response = requests.request(method, f"{gateway}/api/tasks/1", headers=caller)

    assert response.status_code == 200
    assert services.last.method == method


def test_a_refusal_of_the_service_passes_as_it_is(gateway, services: StubServices, caller):
    problem = {"title": "Method Not Allowed", "status": 405}
    allow = {"Allow": "GET, POST", "Content-Type": "application/problem+json"}
    services.answers["/api/tasks"] = lambda handler: handler.answer(405, problem, allow)

    response = requests.delete(f"{gateway}/api/tasks", headers=caller)

    assert (response.status_code, response.json()) == (405, problem)
    assert response.headers["Allow"] == "GET, POST"
    assert response.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_a_body_leaves_the_connection_usable(gateway, services: StubServices, caller, status):
    def answer(handler: StubHandler) -> None:
        handler.send_response(status)
        handler.end_headers()

    services.answers["/api/tasks/1"] = answer
    with requests.Session() as session:
        first = session.delete(f"{gateway}/api/tasks/1", headers=caller)
        second = session.get(f"{gateway}/api/tasks/2", headers=caller)

    assert (first.status_code, first.content) == (status, b"")
    assert second.status_code == 200


@pytest.mark.parametrize("path", ["/", "/api", "/api/nothing", "/api/userss", "/index.html", "/openapi.json"])
def test_an_unknown_path_is_not_found(gateway, path):
    assert_problem(requests.get(f"{gateway}{path}"), 404, "not_found")


@pytest.mark.parametrize(
    "target",
    [
        "/internal/sessions/check",
        "/api/users/../../internal/sessions/check",
        "/api/users/%2e%2e/%2e%2e/internal/sessions/check",
        "/api/users/..%2f..%2finternal/sessions/check",
        "/api/users/..%5c..%5cinternal",
        "//internal/sessions/check",
        "/api/users//x",
        "/api/users/%00",
        "/api/users/%6cogin%2f",
        "http://users/internal/sessions/check",
    ],
)
def test_no_way_of_writing_a_path_reaches_what_is_not_published(
    gateway, services: StubServices, caller, target: str
):
    request = f"GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: {caller['Authorization']}\r\n\r\n"

    response = send_raw(gateway, request.encode())

    assert response.status == 404
    assert services.received == []


def test_a_throttled_path_written_in_escapes_is_still_that_path(gateway, services: StubServices):
    response = requests.post(f"{gateway}/api/users/x", timeout=5)
    assert response.status_code == 401

    request = b"POST /api/users/%6cogin HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    assert send_raw(gateway, request).status == 200
    assert services.last.header("Authorization") is None


def test_a_query_arrives_escape_for_escape(gateway, services: StubServices, caller):
    requests.get(f"{gateway}/api/tasks/%C3%BC?q=%C3%A9+%2F%25&q=%7e&label=a:b", headers=caller)

    assert services.last.target.lower() == "/api/tasks/%c3%bc?q=%c3%a9+%2f%25&q=%7e&label=a:b".replace("%7e", "~")


def test_a_request_line_that_is_no_url_is_malformed(gateway):
    for query in ("q=%zz", "q=100%", "q=é"):
        assert send_raw(gateway, f"GET /api/tasks?{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode()).status == 400


@pytest.mark.parametrize(
    ("request_line", "more", "status"),
    [
        ("GET /é HTTP/1.1", "", 400),
        ("GET /x", "", 400),
        (f"GET /{'x' * 9000} HTTP/1.1", "", 414),
        ("GET /x HTTP/1.1", f"A: {'x' * 9000}\r\n", 431),
        ("POST /x HTTP/1.1", "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", 400),
    ],
)
def test_what_is_no_request_is_answered_by_a_problem_too(gateway, request_line: str, more: str, status: int):
    response = send_raw(gateway, f"{request_line}\r\nHost: x\r\n{more}\r\n".encode())

    problem = json.loads(response.body)  # type: ignore[attr-defined]
    assert (response.status, problem["status"], problem["code"]) == (status, status, "malformed_request")
    assert response.getheader("Content-Type") == "application/problem+json"
    assert response.getheader("X-Request-Id") == problem["requestId"]


@pytest.mark.parametrize(
    ("length", "body"),
    [
        ("Content-Length: 3", b"{}"),
        ("Transfer-Encoding: chunked", b"zz\r\n{}\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked", b"2\r\n{}\r\n"),
    ],
)
def test_a_body_that_breaks_off_is_not_passed_on(
    gateway, services: StubServices, caller, length: str, body: bytes
):
    head = f"POST /api/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: {caller['Authorization']}\r\n{length}\r\n\r\n"
    with connect(gateway) as connection:
        connection.sendall(head.encode() + body)
        connection.shutdown(socket.SHUT_WR)
        response = http.client.HTTPResponse(connection)
        response.begin()

        assert (response.status, json.load(response)["code"]) == (400, "malformed_request")
    assert services.to("/api/tasks") == []


def test_a_body_over_the_limit_is_refused_by_its_length(gateway, services: StubServices, caller):
    response = requests.post(f"{gateway}/api/tasks", headers=caller, data=b"x" * 4 * 1024 * 1024)

    assert_problem(response, 413, "body_too_large")
    assert services.to("/api/tasks") == []


def test_a_batch_may_have_eight_megabytes_and_nothing_else_may(gateway, services: StubServices, caller):
    largest = b"x" * 8 * 1024 * 1024

    taken = requests.post(f"{gateway}/api/tasks/batch", headers=caller, data=largest)
    too_large = requests.post(f"{gateway}/api/tasks/batch", headers=caller, data=largest + b"x")
    elsewhere = requests.post(f"{gateway}/api/tasks/cancel", headers=caller, data=largest)

    assert taken.status_code == 200
    assert services.last.body == largest
    assert_problem(too_large, 413, "body_too_large")
    assert_problem(elsewhere, 413, "body_too_large")


def test_a_body_over_the_limit_is_refused_without_a_length_too(gateway, services: StubServices, caller):
    chunks = (b"x" * 65536 for _ in range(64))

    response = requests.post(f"{gateway}/api/tasks", headers=caller, data=chunks)

    assert_problem(response, 413, "body_too_large")
    assert services.to("/api/tasks") == []


def test_a_body_of_just_the_limit_passes_also_in_chunks(gateway, services: StubServices, caller):
    response = requests.post(f"{gateway}/api/tasks", headers=caller, data=(b"x" * 65536 for _ in range(16)))

    assert response.status_code == 200
    assert services.last.body == b"x" * 1024 * 1024


def test_each_event_of_a_stream_arrives_before_the_next_is_sent(gateway, services: StubServices, caller):
    may_go_on = threading.Event()

    def stream(handler: StubHandler) -> None:
        handler.begin_stream()
        handler.send_chunk(b"data: 1\n\n")
        assert may_go_on.wait(5)
        handler.send_chunk(b"data: 2\n\n")
        handler.send_chunk(b"")

    services.answers["/api/tasks/1/logs"] = stream
    with requests.get(f"{gateway}/api/tasks/1/logs", headers=caller, stream=True, timeout=5) as response:
        pieces = response.iter_content(None)
        first = next(pieces)
        may_go_on.set()
        rest = b"".join(pieces)

    assert first == b"data: 1\n\n"
    assert rest == b"data: 2\n\n"


def test_a_large_answer_arrives_byte_for_byte(gateway, services: StubServices, caller):
    content = bytes(range(256)) * 20_000
    plain = {"Content-Type": "application/octet-stream"}
    services.answers["/api/tasks/1/logs"] = lambda handler: handler.answer(200, content, plain)

    response = requests.get(f"{gateway}/api/tasks/1/logs", headers=caller)

    assert response.content == content
    assert response.headers["Content-Length"] == str(len(content))


def test_a_client_that_leaves_ends_the_services_stream(gateway, services: StubServices, caller):
    noticed = threading.Event()

    def stream(handler: StubHandler) -> None:
        handler.begin_stream()
        try:
            while not noticed.wait(0.01):
                handler.send_chunk(b"x" * 4096)
        except OSError:
            noticed.set()
            handler.close_connection = True

    services.answers["/api/tasks/1/logs"] = stream
    response = requests.get(f"{gateway}/api/tasks/1/logs", headers=caller, stream=True, timeout=5)
    next(response.iter_content(10))
    response.close()

    assert noticed.wait(10)


def test_an_answer_that_breaks_off_is_not_passed_as_whole(gateway, services: StubServices, caller):
    def stream(handler: StubHandler) -> None:
        handler.begin_stream()
        handler.send_chunk(b"the beginning")
        handler.break_off()

    services.answers["/api/tasks/1/logs"] = stream

    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        _ = requests.get(f"{gateway}/api/tasks/1/logs", headers=caller, timeout=5).content


def test_a_broken_connection_is_tried_once_more_when_the_method_may_be_repeated(
    gateway, services: StubServices, caller
):
    def break_once(handler: StubHandler) -> None:
        if len(services.to("/api/tasks/1")) == 1:
            handler.break_off()
        else:
            handler.answer(200, {"second": True})

    services.answers["/api/tasks/1"] = break_once

    response = requests.get(f"{gateway}/api/tasks/1", headers=caller)

    assert (response.status_code, response.json()) == (200, {"second": True})


def test_a_broken_connection_is_not_tried_again_when_that_could_do_something_twice(
    gateway, services: StubServices, caller
):
    services.answers["/api/tasks"] = StubHandler.break_off

    response = requests.post(f"{gateway}/api/tasks", headers=caller, json={"image": "x"})

    assert_problem(response, 502, "upstream_failed")
    assert "Retry-After" in response.headers
    assert len(services.to("/api/tasks")) == 1


def test_a_connection_that_always_breaks_is_given_up_after_the_second_time(
    gateway, services: StubServices, caller
):
    services.answers["/api/tasks/1"] = StubHandler.break_off

    response = requests.get(f"{gateway}/api/tasks/1", headers=caller)

    assert_problem(response, 502, "upstream_failed")
    assert len(services.to("/api/tasks/1")) == 2


def test_a_slow_client_holds_up_nobody_else(gateway, services: StubServices, caller):
    half = b"POST /api/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nAuthorization: "
    slow = [connect(gateway) for _ in range(8)]
    for connection in slow:
        connection.sendall(half + caller["Authorization"].encode() + b"\r\n\r\n{")

    response = requests.get(f"{gateway}/api/tasks", headers=caller, timeout=2)

    assert response.status_code == 200
    assert [request.method for request in services.to("/api/tasks")] == ["GET"]
    for connection in slow:
        connection.close()


def read_health(gateway: str, *, status: int) -> requests.Response:
    """The report, once it has that status: an earlier one may be reused for a second."""
    found: list[requests.Response] = []

    def ask() -> bool:
        found.append(requests.get(f"{gateway}/api/health"))
        return found[-1].status_code == status

    wait_until(ask)
    return found[-1]


def test_a_client_may_pause_between_requests_but_not_within_one(services: StubServices, redis_url: str):
    with running_gateway(services, redis_url) as gateway:
        pausing = http.client.HTTPConnection(urlsplit(gateway).netloc, timeout=25)
        ask(pausing)
        used = pausing.sock
        with connect(gateway, timeout=25) as stalling:
            stalling.sendall(b"POST /api/users/refresh HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
            assert stalling.recv(65536).startswith(b"HTTP/1.1 408")

        ask(pausing)

        assert pausing.sock is used
        pausing.close()


def ask(connection: http.client.HTTPConnection) -> None:
    connection.request("GET", "/livez")
    response = connection.getresponse()
    assert (response.status, json.load(response)) == (200, {"status": "alive"})


def test_health_of_all_parts_comes_in_one_answer(gateway, services: StubServices):
    executors = {"status": "up", "latencyMs": 1, "alive": 2}
    checks = {"postgres": {"status": "up", "latencyMs": 0.5}, "executors": executors}
    services.answers["/readyz"] = lambda handler: handler.answer(200, {"status": "ready", "checks": checks})

    response = read_health(gateway, status=200)

    body = response.json()
    assert set(body["services"]) == {
        "gateway",
        "users",
        "scheduler",
        "scheduler-logs",
        "scheduler-loops",
        "executors",
    }
    assert body["services"]["gateway"]["checks"] == {"redis": {"status": "up"}}
    assert body["services"]["executors"] == {"status": "ready", "alive": 2}
    assert body["services"]["users"]["checks"]["postgres"] == {"status": "up", "latencyMs": 0.5}


def test_health_is_503_while_a_part_is_missing_and_tells_no_secret(gateway, services: StubServices):
    down = {"postgres": {"status": "down", "error": "connection to postgres:5432 failed, password hunter2"}}
    services.answers["/readyz"] = lambda handler: handler.answer(503, {"status": "unavailable", "checks": down})

    response = read_health(gateway, status=503)

    assert response.json()["status"] == "unavailable"
    assert response.json()["services"]["users"]["checks"] == {"postgres": {"status": "down"}}
    assert "hunter2" not in response.text
    assert "127.0.0.1" not in response.text


def test_the_documents_of_the_services_are_merged_into_one(gateway, services: StubServices):
    document = {"paths": {"/api/tasks/": {"get": {"responses": {"200": {"description": "ok"}}}}}}
    services.answers["/openapi.json"] = lambda handler: handler.answer(200, document)

    response = requests.get(f"{gateway}/api/openapi.json")

    merged = response.json()
    assert response.headers["Content-Type"] == "application/json"
    assert {"/api/tasks/", "/api/health"} <= set(merged["paths"])
    assert merged["servers"] == [{"url": "/"}]


@pytest.mark.parametrize(
    ("path", "content_type"),
    [("/api/docs", "text/html"), ("/api/docs/docs.js", "text/javascript"), ("/api/docs/docs.css", "text/css")],
)
def test_the_page_needs_nothing_from_elsewhere(gateway, path, content_type):
    response = requests.get(f"{gateway}{path}")

    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith(content_type)
    assert "script-src 'self'" in response.headers["Content-Security-Policy"]
    assert "http://" not in response.text
    assert "https://" not in response.text


def test_the_gateway_counts_requests_by_route_not_by_path(gateway, caller):
    name = unique("task")
    requests.get(f"{gateway}/api/tasks/{name}", headers=caller)

    metrics = requests.get(f"{gateway}/metrics").text

    assert 'route="/api/tasks/<path:rest>"' in metrics
    assert name not in metrics


def test_readiness_names_each_dependency(gateway, services: StubServices):
    services.answers["/livez"] = lambda handler: handler.answer(200, {"status": "alive"})

    body = json.loads(requests.get(f"{gateway}/readyz").text)

    assert body["status"] == "ready"
    assert set(body["checks"]) == {"users", "scheduler", "scheduler-logs", "redis"}
