from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, Verbosity

from tests.integration.client import Api, User, expect, log_in, new_signup

pytestmark = pytest.mark.integration

EXAMPLES = 12
GIVEN_PATHS = {
    ("post", "/api/tasks/"),
    ("get", "/api/tasks/"),
    ("get", "/api/tasks/{}"),
    ("delete", "/api/tasks/{}"),
    ("post", "/api/users/"),
    ("post", "/api/users/login"),
    ("post", "/api/users/signup"),
    ("put", "/api/users/role/{}"),
    ("get", "/api/users/{}"),
    ("put", "/api/users/{}"),
    ("delete", "/api/users/{}"),
    ("get", "/api/users/"),
    ("get", "/api/users/me"),
    ("post", "/api/users/refresh"),
    ("post", "/api/users/logout"),
    ("post", "/api/users/me/tokens"),
    ("get", "/api/users/me/tokens"),
    ("delete", "/api/users/me/tokens/{}"),
    ("get", "/.well-known/jwks.json"),
}


@pytest.fixture(scope="module")
def document(url: str) -> dict[str, Any]:
    document: dict[str, Any] = expect(Api(url).get("/api/openapi.json"), 200)
    return document


@pytest.fixture
def tester(url: str, admin: User) -> Iterator[User]:
    """An admin of the test's own, whose tasks are gone afterwards."""
    body = new_signup(name="Tester", roles=["user", "admin"])
    created = expect(admin.api.post("/api/users/", body), 201)
    yield log_in(url, body["email"], body["password"])
    while tasks := expect(admin.api.get("/api/tasks/", params={"userId": created["id"], "limit": 200}), 200)[
        "items"
    ]:
        for task in tasks:
            admin.api.delete(f"/api/tasks/{task['id']}")
    admin.api.delete(f"/api/users/{created['id']}")


def list_operations(document: dict[str, Any]) -> set[tuple[str, str]]:
    return {
        (method, "/".join("{}" if part.startswith("{") else part for part in path.split("/")))
        for path, item in document["paths"].items()
        for method in item
        if method in ("get", "post", "put", "patch", "delete")
    }


def test_every_given_path_is_in_the_document(document: dict[str, Any]):
    assert list_operations(document) >= GIVEN_PATHS


def test_nothing_internal_is_in_the_document(document: dict[str, Any]):
    assert not [path for path in document["paths"] if "internal" in path]


def test_the_page_that_shows_the_document_is_there(anyone: Api):
    page = anyone.get("/api/docs")

    assert page.status_code == 200
    assert page.headers["Content-Type"].startswith("text/html")


def test_no_input_that_fits_the_document_or_does_not_makes_a_5xx(document: dict[str, Any], tester: User, url: str):
    schema = schemathesis.openapi.from_dict(document)
    failures: list[str] = []
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        # A logout ends the session that it is tried with, so each operation gets one of its own.
        session = log_in(url, tester.email, tester.password)
        tried += 1
        failures += try_operation(operation, url=url, token=str(session.api.token))

    assert failures == []
    assert tried >= len(GIVEN_PATHS)


def try_operation(operation: Any, *, url: str, token: str) -> list[str]:
    failures: list[str] = []

    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy())
    def send(case: Any) -> None:
        # A health check's 503 is its answer.
        response = case.call(base_url=url, headers={"Authorization": f"Bearer {token}"})
        if response.status_code >= 500 and operation.path != "/api/health":
            failures.append(f"{response.status_code} {case.as_curl_command()}")

    send()
    return failures
