"""Personal access tokens, and their exchange for a JWT by the gateway."""

from __future__ import annotations

from datetime import timedelta

import pytest

from libs.common.clock import format_time, utc_now
from services.users.opaque_tokens import hash_token
from services.users.tests.builders import Api, Person, read_claims

pytestmark = pytest.mark.component

TOKENS = "/api/users/me/tokens"


def exchange(api: Api, token: str):
    return api.internal("POST", "/tokens/exchange", {"token": token})


def test_a_token_is_shown_once(ada):
    expires_at = format_time(utc_now() + timedelta(days=1))

    response = ada.post(TOKENS, {"name": "ci", "expiresAt": expires_at})

    created = response.get_json()
    assert response.status_code == 201
    assert set(created) == {"id", "name", "token", "createdAt", "expiresAt", "lastUsedAt"}
    assert created["token"].startswith("trp_")
    assert created["expiresAt"] == expires_at
    assert response.headers["Location"] == f"{TOKENS}/{created['id']}"
    listed = ada.get(TOKENS).get_json()
    assert listed == {
        "items": [{key: created[key] for key in ("id", "name", "createdAt", "expiresAt", "lastUsedAt")}],
        "nextCursor": None,
    }


def test_the_exchange_gives_a_short_lived_token_that_works(api: Api, ada):
    created = ada.post(TOKENS, {"name": "ci"}).get_json()

    response = exchange(api, created["token"])

    answer = response.get_json()
    claims = read_claims(answer["token"])
    assert (response.status_code, answer["expiresIn"]) == (200, 60)
    assert (claims["sub"], claims["sid"], claims["exp"] - claims["iat"]) == (ada.id, created["id"], 60)
    assert api.get("/api/users/me", token=answer["token"]).get_json()["id"] == ada.id
    assert ada.get(TOKENS).get_json()["items"][0]["lastUsedAt"] is not None


def test_the_exchanged_token_never_outlives_the_personal_one(api: Api, pool, ada):
    token = ada.post(TOKENS, {"name": "ci"}).get_json()["token"]
    with pool.connection() as connection:
        connection.execute(
            "UPDATE users.personal_tokens SET expires_at = now() + interval '10 s' WHERE token_hash = %s",
            (hash_token(token),),
        )

    answer = exchange(api, token).get_json()

    assert 5 <= answer["expiresIn"] <= 10


def test_a_deleted_token_ends_with_what_it_was_exchanged_for(api: Api, ada):
    created = ada.post(TOKENS, {"name": "ci"}).get_json()
    exchanged = exchange(api, created["token"]).get_json()["token"]

    response = ada.delete(f"{TOKENS}/{created['id']}")

    assert (response.status_code, response.data) == (204, b"")
    assert exchange(api, created["token"]).status_code == 401
    assert api.get("/api/users/me", token=exchanged).status_code == 401
    assert ada.delete(f"{TOKENS}/{created['id']}").status_code == 404


def test_an_expired_token_is_refused(api: Api, pool, ada):
    token = ada.post(TOKENS, {"name": "ci"}).get_json()["token"]
    with pool.connection() as connection:
        connection.execute("UPDATE users.personal_tokens SET expires_at = now()")

    assert exchange(api, token).status_code == 401


@pytest.mark.parametrize("token", ["", "trp_", "trp_" + "A" * 43, "é", "x" * 10000])
def test_an_unknown_token_is_refused(api: Api, token: str):
    assert exchange(api, token).status_code == 401


def test_a_role_change_keeps_the_token_which_then_carries_the_new_roles(api: Api, ada, admin):
    token = ada.post(TOKENS, {"name": "ci"}).get_json()["token"]

    admin.put(f"/api/users/role/{ada.id}", {"roles": ["user", "admin"]})

    assert read_claims(exchange(api, token).get_json()["token"])["roles"] == ["user", "admin"]


def test_nobody_sees_or_deletes_another_users_tokens(api: Api, ada, admin):
    created = ada.post(TOKENS, {"name": "ci"}).get_json()

    assert admin.get(TOKENS).get_json()["items"] == []
    assert admin.delete(f"{TOKENS}/{created['id']}").status_code == 404
    assert exchange(api, created["token"]).status_code == 200


def test_logging_out_needs_a_login(api: Api, ada):
    token = ada.post(TOKENS, {"name": "ci"}).get_json()["token"]
    exchanged = exchange(api, token).get_json()["token"]

    response = api.post("/api/users/logout", token=exchanged)

    assert (response.status_code, response.get_json()["code"]) == (409, "no_session")
    assert exchange(api, token).status_code == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": "x", "expiresAt": "2020-01-01T00:00:00Z"}, "expiresAt"),
        ({"name": "x", "expiresAt": "tomorrow"}, "expiresAt"),
        ({"name": "x", "expiresAt": 5}, "expiresAt"),
        ({"name": "x", "expiresAt": "9999-12-31T23:59:59-23:59"}, "expiresAt"),
        ({"name": "x", "scope": "all"}, "scope"),
    ],
)
def test_bad_fields_are_422(ada, body, field: str):
    response = ada.post(TOKENS, body)

    assert response.status_code == 422
    assert set(response.get_json()["errors"]) == {field}


def test_a_token_may_last_until_the_end_of_the_calendar(api: Api, ada):
    response = ada.post(TOKENS, {"name": "x", "expiresAt": "9999-12-31T23:59:59Z"})

    assert response.status_code == 201
    assert exchange(api, response.get_json()["token"]).get_json()["expiresIn"] == 60


def test_the_list_pages(ada: Person):
    for number in range(3):
        ada.post(TOKENS, {"name": f"n{number}"})

    first = ada.get(f"{TOKENS}?limit=2").get_json()
    second = ada.get(f"{TOKENS}?limit=2&cursor={first['nextCursor']}").get_json()

    assert [token["name"] for token in first["items"] + second["items"]] == ["n2", "n1", "n0"]
    assert second["nextCursor"] is None


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_tokens_need_a_token(api: Api, method: str):
    assert api.call(method, TOKENS, {"name": "x"} if method == "POST" else None).status_code == 401


@pytest.mark.parametrize("token_id", ["7b0adfe3-8294-4655-b760-9100915a1b1c", "x"])
def test_unknown_tokens_are_404(ada, token_id: str):
    assert ada.delete(f"{TOKENS}/{token_id}").status_code == 404
