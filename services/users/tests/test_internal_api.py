"""What the other services ask, with the service token."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest

from libs.common.clock import format_time, utc_now
from services.users.tests.builders import Api, read_claims

pytestmark = pytest.mark.component

PATHS = [
    ("POST", "/internal/sessions/check"),
    ("POST", "/internal/tokens/exchange"),
    ("GET", "/internal/users/7b0adfe3-8294-4655-b760-9100915a1b1c"),
    ("GET", "/internal/deletions?since=2026-01-01T00:00:00Z"),
]


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_internal_endpoints_need_the_service_token(api: Api, admin, method: str, path: str):
    answers = [
        api.call(method, path, {}),
        api.call(method, path, {}, token=admin.token),
        api.call(method, path, {}, token="service-tokem"),
        api.call(method, path, {}, headers={"Authorization": "service-token"}),
        api.call(method, path, {}, headers={"Authorization": "Bearer é"}),
    ]

    assert {answer.status_code for answer in answers} == {401}


def test_a_session_counts_only_for_its_own_user_and_version(api: Api, ada, admin):
    claims = read_claims(ada.token)
    right = {"userId": ada.id, "sessionId": claims["sid"], "version": 1}

    def is_active(**changes: Any) -> Any:
        return api.internal("POST", "/sessions/check", {**right, **changes}).get_json()

    assert is_active() == {"active": True}
    assert is_active(userId=admin.id) == {"active": False}
    assert is_active(userId=str(uuid.uuid4())) == {"active": False}
    assert is_active(sessionId=str(uuid.uuid4())) == {"active": False}
    assert is_active(version=2) == {"active": False}
    assert is_active(version=10**30) == {"active": False}


def test_an_expired_session_does_not_count(api: Api, pool, ada):
    with pool.connection() as connection:
        connection.execute("UPDATE users.sessions SET expires_at = now()")

    assert not api.is_active(ada)


@pytest.mark.parametrize("body", [{}, {"userId": "x"}, [], "x", None, {"token": None}, {"token": "\ud800"}])
@pytest.mark.parametrize("path", ["/sessions/check", "/tokens/exchange"])
def test_a_bad_body_is_refused(api: Api, path: str, body):
    response = api.internal("POST", path, body)

    assert response.status_code in (400, 415, 422)


def test_a_users_facts(api: Api, ada):
    response = api.internal("GET", f"/users/{ada.id}")

    assert response.get_json() == {"id": ada.id, "name": "Ada", "email": ada.email, "enabled": True}
    assert api.internal("GET", f"/users/{uuid.uuid4()}").status_code == 404
    assert api.internal("GET", "/users/x").status_code == 404


def test_deletions_are_listed_since_a_time(api: Api, ada):
    before = utc_now() - timedelta(seconds=60)
    ada.delete(ada.path)

    items = api.internal("GET", f"/deletions?since={format_time(before)}").get_json()["items"]
    later = api.internal("GET", f"/deletions?since={format_time(utc_now() + timedelta(hours=1))}").get_json()

    assert [item["userId"] for item in items] == [ada.id]
    assert items[0]["deletedAt"] > format_time(before)
    assert later == {"items": []}


@pytest.mark.parametrize("query", ["", "?since=yesterday", "?since=2026-01-01", "?since=1"])
def test_deletions_need_a_time(api: Api, query: str):
    assert api.internal("GET", f"/deletions{query}").status_code == 422


def test_internal_endpoints_are_not_in_the_api_document(api: Api):
    document = api.get("/openapi.json").get_json()

    assert all(path.startswith("/api/users") for path in document["paths"])


def test_readiness_names_each_dependency_and_waits_for_the_admin(pool, app_over, bootstrap):
    api = Api(app_over(pool, bootstrap=bootstrap))

    def states() -> tuple[int, dict[str, str]]:
        answer = api.get("/readyz")
        checks = answer.get_json()["checks"]
        return answer.status_code, {name: check["status"] for name, check in checks.items()}

    assert states() == (503, {"postgres": "up", "keys": "up", "admin": "down"})
    bootstrap.run_once()
    assert states() == (200, {"postgres": "up", "keys": "up", "admin": "up"})


def test_metrics_count_logins_by_outcome(api: Api, ada):
    api.post("/api/users/login", {"email": ada.email, "password": "wrong"})

    text = api.get("/metrics").text
    assert 'users_logins_total{outcome="wrong_password"}' in text
    assert "users_bcrypt_wait_seconds_bucket" in text
