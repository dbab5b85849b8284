"""Whatever is sent, the answer is a problem document of the API's, nothing is changed, and never a 500."""

from __future__ import annotations

import json

import pytest

from libs.common.postgres import open_pool
from services.users.tests.builders import Api, a_signup

pytestmark = pytest.mark.component

SIGNUP = "/api/users/signup"


def send(api: Api, data: bytes, content_type: str = "application/json", path: str = SIGNUP):
    return api.client.post(path, data=data, content_type=content_type)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"name": NaN}',
        b"\xff\xfe",
        b'"\xed\xa0\x80"',
        b"[" * 10_000 + b"]" * 10_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b"[" * 400_000,
    ],
)
@pytest.mark.parametrize("path", [SIGNUP, "/api/users/login", "/api/users/refresh"])
def test_malformed_json_is_400(api: Api, data: bytes, path: str):
    response = send(api, data, path=path)

    assert response.status_code == 400
    assert response.content_type == "application/problem+json"
    assert response.get_json()["code"] == "malformed_json"


@pytest.mark.parametrize("data", [b"null", b"[]", b'"text"', b"5", b"true", b"[[]]"])
@pytest.mark.parametrize("path", [SIGNUP, "/api/users/login", "/api/users/refresh"])
def test_json_that_is_no_object_is_422(api: Api, data: bytes, path: str):
    response = send(api, data, path=path)

    assert response.status_code == 422


@pytest.mark.parametrize(
    "content_type", ["text/plain", "", "application/x-www-form-urlencoded", "application/xml"]
)
def test_another_content_type_is_415(api: Api, content_type: str):
    response = send(api, json.dumps(a_signup()).encode(), content_type)

    assert response.status_code == 415
    assert response.get_json()["code"] == "unsupported_media_type"


def test_a_body_over_a_mebibyte_is_413(api: Api):
    response = send(api, json.dumps(a_signup(name="x" * 2_000_000)).encode())

    assert response.status_code == 413
    assert response.get_json()["code"] == "body_too_large"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "   "}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": "🦁" * 101}, "name"),
        ({"name": 5}, "name"),
        ({"name": None}, "name"),
        ({"name": ["x"]}, "name"),
        ({"name": "a\x00b"}, "name"),
        ({"name": "a\ud800b"}, "name"),
        ({"email": ""}, "email"),
        ({"email": "nobody"}, "email"),
        ({"email": "a@b"}, "email"),
        ({"email": "a b@example.com"}, "email"),
        ({"email": "a@example.com\n"}, "email"),
        ({"email": "\na@example.com"}, "email"),
        ({"email": "a@b@example.com"}, "email"),
        ({"email": "a\x00@example.com"}, "email"),
        ({"email": '"a b"@example.com'}, "email"),
        ({"email": "x" * 243 + "@example.com"}, "email"),
        ({"email": "a@" + "b" * 70 + ".com"}, "email"),
        ({"email": "a@" + "é" * 60 + ".com"}, "email"),
        ({"email": {}}, "email"),
        ({"password": "short"}, "password"),
        ({"password": "x" * 73}, "password"),
        ({"password": "é" * 37}, "password"),
        ({"password": "nul\x00inside"}, "password"),
        ({"password": "lone\ud83d surrogate"}, "password"),
        ({"password": 12345678}, "password"),
        ({"passwordConfirm": "something else"}, "passwordConfirm"),
        ({"passwordConfirm": None}, "passwordConfirm"),
        ({"roles": ["admin"]}, "roles"),
        ({"enabled": True}, "enabled"),
        ({"id": "x"}, "id"),
        ({"__proto__": 1}, "__proto__"),
        ({"": 1}, ""),
    ],
)
def test_an_invalid_field_is_422_and_named(api: Api, changes, field: str):
    response = api.post(SIGNUP, a_signup(**changes))

    body = response.get_json()
    assert response.status_code == 422
    assert body["code"] == "invalid_fields"
    assert body["requestId"] == response.headers["X-Request-Id"]
    assert field in body["errors"]
    assert all(isinstance(message, str) for message in body["errors"][field])


@pytest.mark.parametrize("field", ["name", "email", "password", "passwordConfirm"])
def test_a_missing_field_is_422_and_named(api: Api, field: str):
    body = a_signup()
    del body[field]

    response = api.post(SIGNUP, body)

    assert response.status_code == 422
    assert field in response.get_json()["errors"]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "é" * 100},
        {"name": "李小龙"},
        {"name": "a\u202eb\n\t"},
        {"email": "jörg@exämple.com"},
        {"email": "o'neil+tag@sub.example.co.uk"},
        {"email": "x" * 242 + "@example.com"},
        {"password": "8 bytes!"},
        {"password": "é" * 36},
        {"password": "パスワード です"},
    ],
)
def test_what_is_unusual_but_valid_is_taken_and_kept(api: Api, changes):
    person = api.sign_up(**changes)

    user = person.log_in().get("/api/users/me").get_json()
    assert all(user[key] == value for key, value in changes.items() if key != "password")


@pytest.mark.parametrize(
    "header",
    ["Bearer", "Bearer ", "Basic YTpi", "Bearer a b", "Bearer é", "Bearer " + "x" * 8000, "", "Bearer a.b.c", "x"],
)
def test_a_bad_authorization_header_is_401(api: Api, header: str):
    response = api.get("/api/users/me", headers={"Authorization": header})

    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "body",
    [
        {"currentPassword": "wrong", "name": "x"},
        {"currentPassword": None},
        {"passwordConfirm": "new password"},
        {"password": "new password", "passwordConfirm": "other password"},
        {"password": None, "passwordConfirm": None},
        {"name": None},
        {"email": None},
        {"enabled": "yes"},
        {"enabled": 1},
        {"enabled": None},
        {"roles": ["admin"]},
        {"version": 7},
        {"passwordHash": "x"},
    ],
)
def test_a_bad_change_is_422_and_changes_nothing(ada, body):
    before = ada.get(ada.path).get_json()

    response = ada.put(ada.path, body)

    assert response.status_code == 422
    assert ada.get(ada.path).get_json() == before


@pytest.fixture
def api_without_database(make_database, app_over) -> Api:
    pool = open_pool(make_database("users").dsn, name="users-test", max_size=1, wait_seconds=0.2)
    api = Api(app_over(pool))
    pool.close()
    return api


def test_the_database_being_away_is_503_with_retry_after(api_without_database: Api, ada):
    answers = [
        api_without_database.get("/api/users/me", token=ada.token),
        api_without_database.post(SIGNUP, a_signup()),
        api_without_database.post("/api/users/login", {"email": ada.email, "password": ada.password}),
    ]

    assert {answer.status_code for answer in answers} == {503}
    assert all(answer.headers["Retry-After"] for answer in answers)
    assert api_without_database.get("/readyz").status_code == 503
    assert api_without_database.get("/livez").status_code == 200
