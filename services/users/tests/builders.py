"""Valid requests, and a client that speaks as somebody. A test names only what matters to it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import jwt
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

PASSWORD = "correct horse"
SERVICE_TOKEN = "service-token"


def an_email() -> str:
    return f"{uuid.uuid4().hex[:12]}@example.com"


def a_signup(**changes: Any) -> dict[str, Any]:
    password = changes.get("password", PASSWORD)
    return {"name": "Ada", "email": an_email(), "password": password, "passwordConfirm": password, **changes}


@dataclass(frozen=True)
class Person:
    """Somebody with an account, and their way to the service."""

    api: Api
    id: str
    email: str
    password: str
    token: str
    refresh_token: str

    def get(self, path: str, **options: Any) -> TestResponse:
        return self.api.call("GET", path, token=self.token, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> TestResponse:
        return self.api.call("POST", path, body, token=self.token, **options)

    def put(self, path: str, body: Any = None, **options: Any) -> TestResponse:
        return self.api.call("PUT", path, body, token=self.token, **options)

    def delete(self, path: str) -> TestResponse:
        return self.api.call("DELETE", path, token=self.token)

    @property
    def path(self) -> str:
        return f"/api/users/{self.id}"

    def log_in(self) -> Person:
        """The same person with new tokens."""
        return self.api.log_in(self.email, self.password)


class Api:
    """The users service through Flask's test client; safe to use from several threads."""

    def __init__(self, app: Flask) -> None:
        self._app = app

    @property
    def client(self) -> FlaskClient:
        return self._app.test_client()

    def call(
        self, method: str, path: str, body: Any = None, *, token: str | None = None, **options: Any
    ) -> TestResponse:
        headers = dict(options.pop("headers", {}))
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if body is not None:
            options["json"] = body
        return self.client.open(path, method=method, headers=headers, **options)

    def get(self, path: str, **options: Any) -> TestResponse:
        return self.call("GET", path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> TestResponse:
        return self.call("POST", path, body, **options)

    def internal(self, method: str, path: str, body: Any = None) -> TestResponse:
        return self.call(method, f"/internal{path}", body, token=SERVICE_TOKEN)

    def sign_up(self, **changes: Any) -> Person:
        body = a_signup(**changes)
        response = self.post("/api/users/signup", body)
        assert response.status_code == 201, response.text
        return self._person(response, body["password"])

    def log_in(self, email: str, password: str = PASSWORD) -> Person:
        response = self.post("/api/users/login", {"email": email, "password": password})
        assert response.status_code == 200, response.text
        return self._person(response, password)

    def is_active(self, person: Person) -> bool:
        """What the gateway would be told about the person's token."""
        claims = read_claims(person.token)
        body = {"userId": claims["sub"], "sessionId": claims["sid"], "version": claims["ver"]}
        return bool(self.internal("POST", "/sessions/check", body).get_json()["active"])

    def _person(self, response: TestResponse, password: str) -> Person:
        body = response.get_json()
        return Person(self, body["id"], body["email"], password, body["token"], body["refreshToken"])


def read_claims(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims
