from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import GenerationMode

from tests.integration.client import Api, User, expect, log_in, new_signup

pytestmark = pytest.mark.integration

EXAMPLES = 6
GIVEN_PATHS = {
    ("post", "/api/tasks/"),
    ("get", "/api/tasks/"),
    ("get", "/api/tasks/{}"),
    ("delete", "/api/tasks/{}"),
    ("post", "/api/tasks/{}/cancel"),
    ("post", "/api/tasks/{}/rerun"),
    ("get", "/api/tasks/{}/runs"),
    ("get", "/api/tasks/{}/logs"),
    ("post", "/api/tasks/batch"),
    ("post", "/api/tasks/cancel"),
    ("post", "/api/tasks/rerun"),
    ("get", "/api/tasks/stats"),
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
    ("get", "/api/users/{}/quota"),
    ("put", "/api/users/{}/quota"),
    ("get", "/api/executors/"),
    ("post", "/api/executors/{}/drain"),
    ("post", "/api/executors/{}/undrain"),
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
    statuses: Counter[int] = Counter()
    failures: list[str] = []
    token = str(tester.api.token)
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path.endswith("/logout"):
            token = str(log_in(url, tester.email, tester.password).api.token)
        for mode in GenerationMode:
            if mode is GenerationMode.POSITIVE or can_be_wrong(operation):
                failures += try_operation(operation, mode, url=url, token=token, statuses=statuses)
        if operation.path.endswith("/logout"):
            # That session is over now.
            token = str(tester.api.token)

    assert failures == []
    # It was really tried: some was accepted, and some refused for what it was.
    assert statuses[200] + statuses[201] >= 20, statuses
    assert statuses[400] + statuses[422] >= 20, statuses


def can_be_wrong(operation: Any) -> bool:
    return bool(operation.body or operation.query or operation.path_parameters)


def try_operation(
    operation: Any, mode: GenerationMode, *, url: str, token: str, statuses: Counter[int]
) -> list[str]:
    failures: list[str] = []

    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        response = case.call(base_url=url, headers={"Authorization": f"Bearer {token}"})
        statuses[response.status_code] += 1
        # A health check's 503 is its answer.
        if response.status_code >= 500 and operation.path != "/api/health":
            failures.append(f"{response.status_code} {case.as_curl_command()}")

    send()
    return failures
