"""The API as the tests use it: one client a caller, and builders that need only what a test is about."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from tests.polling import wait_until

IMAGE = "busybox:latest"
PASSWORD = "correct horse battery"
TERMINAL = ("completed", "failed", "cancelled")
# Every part of the system may have been restarted a moment ago.
END_SECONDS = 40.0

Json = dict[str, Any]


class Api:
    """Calls the gateway, as the owner of `token` or as nobody."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url
        self.token = token
        self._session = requests.Session()
        # The gateway closes a connection that was idle for 30 s, perhaps just as it is used again.
        reads = Retry(total=2, allowed_methods={"GET"}, backoff_factor=0.1, respect_retry_after_header=False)
        self._session.mount(url, HTTPAdapter(max_retries=reads))

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        """The answer, whatever its status. `token=…` speaks for somebody else this once."""
        token = options.pop("token", self.token)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        headers.update(options.pop("headers", {}))
        return self._session.request(method, self.url + path, headers=headers, timeout=60, **options)

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.call("GET", path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> requests.Response:
        return self.call("POST", path, json=body, **options)

    def put(self, path: str, body: Any, **options: Any) -> requests.Response:
        return self.call("PUT", path, json=body, **options)

    def delete(self, path: str, **options: Any) -> requests.Response:
        return self.call("DELETE", path, **options)

    # Tasks.

    def create_task(self, command: str | None = None, *args: str, **fields: Any) -> Json:
        """A created task: `create_task("echo", "hello", timeoutSeconds=5)`."""
        return expect(self.post("/api/tasks/", new_task(command, *args, **fields)), 201)

    def get_task(self, task_id: str) -> Json:
        return expect(self.get(f"/api/tasks/{task_id}"), 200)

    def wait_for(self, task_id: str, *statuses: str, seconds: float = END_SECONDS) -> Json:
        """The task once it has one of these statuses, by default once it is terminal."""
        wanted = statuses or TERMINAL
        seen: list[Json] = []

        def arrived() -> bool:
            response = self.get(f"/api/tasks/{task_id}")
            # A part that is just being restarted answers 503; that is not what is asked about here.
            if response.status_code not in (502, 503, 504):
                seen.append(expect(response, 200))
            return bool(seen) and (seen[-1]["status"] in wanted or seen[-1]["status"] in TERMINAL)

        wait_until(arrived, what=f"task {task_id} became {' or '.join(wanted)}", seconds=seconds)
        assert seen[-1]["status"] in wanted, seen[-1]
        return seen[-1]

    def run(self, command: str | None = None, *args: str, seconds: float = END_SECONDS, **fields: Any) -> Json:
        """A task that was created and has ended."""
        return self.wait_for(self.create_task(command, *args, **fields)["id"], seconds=seconds)

    def read_logs(self, task_id: str, **query: Any) -> bytes:
        response = self.get(f"/api/tasks/{task_id}/logs", params=query)
        assert response.status_code == 200, response.text
        return response.content

    def list_runs(self, task_id: str) -> list[Json]:
        runs: list[Json] = expect(self.get(f"/api/tasks/{task_id}/runs"), 200)["items"]
        return runs


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who signed up, and their client."""

    id: str
    email: str
    api: Api
    refresh_token: str
    password: str = PASSWORD


def expect(response: requests.Response, status: int) -> Any:
    """The decoded body of an answer that must have this status."""
    assert response.status_code == status, f"{response.status_code} {response.text[:2000]}"
    return response.json() if response.content else None


def expect_problem(response: requests.Response, status: int, code: str | None = None) -> Json:
    """The problem document of an error that must have this status, and be one as the API promises it."""
    problem: Json = expect(response, status)
    assert response.headers["Content-Type"] == "application/problem+json"
    assert {"type", "title", "status", "detail", "code", "requestId"} <= set(problem)
    assert problem["status"] == status
    assert problem["requestId"] == response.headers["X-Request-Id"]
    if status == 401:
        assert response.headers["WWW-Authenticate"].startswith("Bearer")
    if code is not None:
        assert problem["code"] == code
    return problem


def new_task(command: str | None = None, *args: str, **fields: Any) -> Json:
    """The body that creates a task of the test image, on no network unless the test is about networks."""
    body: Json = {"image": IMAGE, "network": "none", "stopGraceSeconds": 1}
    if command is not None:
        body |= {"command": command, "args": list(args)}
    return body | fields


def shell(script: str, **fields: Any) -> Json:
    return new_task("sh", "-c", script, **fields)


def new_email() -> str:
    return f"user-{secrets.token_hex(8)}@example.org"


def new_signup(**fields: Any) -> Json:
    body = {"name": "Ada", "email": new_email(), "password": PASSWORD, "passwordConfirm": PASSWORD}
    return body | fields


def sign_up(url: str, **fields: Any) -> User:
    body = new_signup(**fields)
    answer = expect(Api(url).post("/api/users/signup", body), 201)
    return User(answer["id"], body["email"], Api(url, answer["token"]), answer["refreshToken"], body["password"])


def log_in(url: str, email: str, password: str) -> User:
    answer = expect(Api(url).post("/api/users/login", {"email": email, "password": password}), 200)
    return User(answer["id"], email, Api(url, answer["token"]), answer["refreshToken"], password)


def in_seconds(seconds: float) -> str:
    return to_text(datetime.now(UTC) + timedelta(seconds=seconds))


def to_text(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def to_time(text: str) -> datetime:
    return datetime.fromisoformat(text)
