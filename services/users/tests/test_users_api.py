"""Reading, creating, changing and deleting users: every status that they can answer with."""

from __future__ import annotations

import uuid

import pytest

from services.users.tests.builders import PASSWORD, Api, a_signup, an_email

pytestmark = pytest.mark.component

EVERYTHING = {"id", "name", "email", "roles", "enabled", "createdAt", "updatedAt"}
NEW_PASSWORD = "another horse"
UNKNOWN_ID = "7b0adfe3-8294-4655-b760-9100915a1b1c"


def unknown() -> str:
    return f"/api/users/{uuid.uuid4()}"


def test_an_admin_creates_a_user_with_roles(api: Api, admin):
    body = a_signup(roles=["admin", "user", "admin"])

    response = admin.post("/api/users/", body)

    answer = response.get_json()
    assert response.status_code == 201
    assert set(answer) == EVERYTHING
    assert answer["roles"] == ["user", "admin"]
    assert response.headers["Location"] == f"/api/users/{answer['id']}"
    assert api.log_in(body["email"]).get("/api/users/").status_code == 200


@pytest.mark.parametrize("path", ["/api/users/", "/api/users"])
def test_collections_work_with_and_without_the_final_slash(admin, path: str):
    assert admin.get(path).status_code == 200
    assert admin.post(path, a_signup(roles=["user"])).status_code == 201


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/api/users/"), ("GET", "/api/users/"), ("PUT", f"/api/users/role/{UNKNOWN_ID}")],
)
def test_admin_paths_are_403_for_users_and_401_without_a_token(api: Api, ada, method: str, path: str):
    as_user = api.call(method, path, {}, token=ada.token)
    as_nobody = api.call(method, path, {})

    assert (as_user.status_code, as_user.get_json()["code"]) == (403, "role_lacking")
    assert as_nobody.status_code == 401
    assert as_nobody.headers["WWW-Authenticate"] == "Bearer"


def test_an_email_in_use_is_refused_also_to_admins(admin, ada):
    response = admin.post("/api/users/", a_signup(roles=["user"], email=ada.email))

    assert (response.status_code, response.get_json()["code"]) == (409, "email_taken")


def test_strangers_see_only_id_and_name(api: Api, ada):
    bob = api.sign_up(name="Bob")

    seen = [api.get(ada.path), bob.get(ada.path)]

    assert [answer.status_code for answer in seen] == [200, 200]
    assert all(answer.get_json() == {"id": ada.id, "name": "Ada"} for answer in seen)


def test_self_and_admins_see_everything_but_the_hash(ada, admin):
    for reader in (ada, admin):
        answer = reader.get(ada.path).get_json()

        assert set(answer) == EVERYTHING
        assert answer["createdAt"].endswith("Z")


def test_a_bad_token_is_401_even_where_none_is_needed(api: Api, ada):
    response = api.get(ada.path, token="nonsense")

    assert response.status_code == 401


@pytest.mark.parametrize("user_id", [UNKNOWN_ID, "1", "x" * 300, "%00", "..%2f..", "role"])
def test_unknown_ids_and_ids_that_are_none_are_404(api: Api, admin, user_id: str):
    path = f"/api/users/{user_id}"

    answers = [api.get(path), admin.get(path), admin.put(path, {"name": "x"}), admin.delete(path)]
    answers.append(admin.put(f"/api/users/role/{user_id}", {"roles": ["user"]}))

    assert {answer.status_code for answer in answers} == {404}
    assert {answer.content_type for answer in answers} == {"application/problem+json"}


def test_me_is_the_callers_own_account(ada):
    assert ada.get("/api/users/me").get_json() == ada.get(ada.path).get_json()


def test_the_list_pages_through_all_users_newest_first(api: Api, admin):
    for number in range(5):
        api.sign_up(name=f"n{number}")

    names: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = admin.get(f"/api/users/?limit=2&cursor={cursor}" if cursor else "/api/users/?limit=2").get_json()
        names += [user["name"] for user in page["items"]]
        cursor = page["nextCursor"]

    assert names == ["n4", "n3", "n2", "n1", "n0", "Admin"]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=201", "limit=x", "limit=5_0", "limit=", "cursor=x", "cursor=%00", "x=1", "cursor="]
)
def test_a_bad_list_query_is_422(admin, query: str):
    response = admin.get(f"/api/users/?{query}")

    assert response.status_code == 422
    assert set(response.get_json()["errors"]) == {query.partition("=")[0]}


def test_a_user_changes_their_own_name_and_email(api: Api, ada):
    email = an_email()

    response = ada.put(ada.path, {"name": "Ada Löwe 🦁", "email": email})

    assert response.status_code == 200
    assert response.get_json()["name"] == "Ada Löwe 🦁"
    assert response.get_json()["updatedAt"] > response.get_json()["createdAt"]
    assert api.log_in(email).id == ada.id
    assert api.is_active(ada)


def test_an_email_may_change_its_case(api: Api, ada):
    response = ada.put(ada.path, {"email": ada.email.upper()})

    assert response.status_code == 200
    assert response.get_json()["email"] == ada.email.upper()


def test_changing_to_an_email_in_use_is_409_and_changes_nothing(api: Api, ada):
    bob = api.sign_up(name="Bob")

    response = bob.put(bob.path, {"name": "Robert", "email": ada.email.upper()})

    assert (response.status_code, response.get_json()["code"]) == (409, "email_taken")
    assert bob.get(bob.path).get_json()["name"] == "Bob"


def test_an_empty_change_changes_nothing(ada):
    before = ada.get(ada.path).get_json()

    response = ada.put(ada.path, {})

    assert response.status_code == 200
    assert response.get_json() == before


def test_a_new_password_ends_all_sessions_and_personal_tokens(api: Api, ada):
    elsewhere = ada.log_in()
    personal = ada.post("/api/users/me/tokens", {"name": "ci"}).get_json()["token"]

    response = ada.put(ada.path, {"password": NEW_PASSWORD, "passwordConfirm": NEW_PASSWORD})

    assert response.status_code == 200
    assert not api.is_active(ada)
    assert not api.is_active(elsewhere)
    assert api.post("/api/users/refresh", {"refreshToken": elsewhere.refresh_token}).status_code == 401
    assert api.internal("POST", "/tokens/exchange", {"token": personal}).status_code == 401
    assert api.post("/api/users/login", {"email": ada.email, "password": PASSWORD}).status_code == 401
    assert api.is_active(api.log_in(ada.email, NEW_PASSWORD))


def test_a_password_may_be_changed_without_sending_it_twice(api: Api, ada):
    response = ada.put(ada.path, {"password": NEW_PASSWORD, "currentPassword": PASSWORD})

    assert response.status_code == 200
    assert api.log_in(ada.email, NEW_PASSWORD).id == ada.id


def test_an_ended_token_can_change_nothing_and_make_no_new_token(api: Api, ada):
    ada.put(ada.path, {"password": NEW_PASSWORD, "passwordConfirm": NEW_PASSWORD})

    answers = [
        ada.put(ada.path, {"password": PASSWORD, "passwordConfirm": PASSWORD}),
        ada.put(ada.path, {"email": an_email()}),
        ada.post("/api/users/me/tokens", {"name": "thief"}),
        ada.get("/api/users/me"),
        ada.get("/api/users/me/tokens"),
        ada.get(ada.path),
        ada.delete(ada.path),
        ada.post("/api/users/logout"),
    ]

    assert {answer.status_code for answer in answers} == {401}
    assert {answer.get_json()["code"] for answer in answers} == {"session_ended"}


def test_an_admin_changes_another_user(api: Api, ada, admin):
    response = admin.put(ada.path, {"name": "Augusta", "password": NEW_PASSWORD, "passwordConfirm": NEW_PASSWORD})

    assert (response.status_code, response.get_json()["name"]) == (200, "Augusta")
    assert api.log_in(ada.email, NEW_PASSWORD).id == ada.id
    assert api.is_active(admin)


def test_another_user_can_neither_change_nor_delete(api: Api, ada):
    bob = api.sign_up(name="Bob")

    answers = [bob.put(ada.path, {"name": "x"}), bob.delete(ada.path)]

    assert [answer.status_code for answer in answers] == [404, 404]
    assert ada.get(ada.path).get_json()["name"] == "Ada"


def test_changing_and_deleting_need_a_token(api: Api, ada):
    answers = [api.call("PUT", ada.path, {"name": "x"}), api.call("DELETE", ada.path)]

    assert [answer.status_code for answer in answers] == [401, 401]


def test_only_an_admin_may_send_enabled(ada):
    for value in (True, False):
        response = ada.put(ada.path, {"enabled": value, "name": "x"})

        assert (response.status_code, response.get_json()["code"]) == (403, "role_lacking")
    assert ada.get(ada.path).get_json()["name"] == "Ada"


def test_a_disabled_user_is_out_and_comes_back_by_logging_in(api: Api, ada, admin):
    personal = ada.post("/api/users/me/tokens", {"name": "ci"}).get_json()["token"]

    disabled = admin.put(ada.path, {"enabled": False})

    assert (disabled.status_code, disabled.get_json()["enabled"]) == (200, False)
    assert not api.is_active(ada)
    assert api.post("/api/users/refresh", {"refreshToken": ada.refresh_token}).status_code == 401
    assert api.internal("POST", "/tokens/exchange", {"token": personal}).status_code == 401
    admin.put(ada.path, {"enabled": True})
    assert not api.is_active(ada)
    assert api.is_active(ada.log_in())


def test_roles_are_set_and_count_after_a_refresh(api: Api, ada, admin):
    response = admin.put(f"/api/users/role/{ada.id}", {"roles": ["admin"]})

    assert (response.status_code, response.get_json()["roles"]) == (200, ["admin"])
    assert not api.is_active(ada)
    refreshed = api.post("/api/users/refresh", {"refreshToken": ada.refresh_token}).get_json()
    assert api.get("/api/users/", token=refreshed["token"]).status_code == 200


def test_setting_the_same_roles_ends_no_token(api: Api, ada, admin):
    admin.put(f"/api/users/role/{ada.id}", {"roles": ["user"]})

    assert api.is_active(ada)


@pytest.mark.parametrize("roles", [[], ["root"], "admin", None, [1], ["user", None], {}])
def test_bad_roles_are_422(ada, admin, roles):
    response = admin.put(f"/api/users/role/{ada.id}", {"roles": roles})

    assert response.status_code == 422


def test_a_deleted_user_is_gone_and_their_tokens_end(api: Api, ada):
    response = ada.delete(ada.path)

    assert (response.status_code, response.data) == (204, b"")
    assert api.get(ada.path).status_code == 404
    assert not api.is_active(ada)
    assert api.post("/api/users/refresh", {"refreshToken": ada.refresh_token}).status_code == 401
    assert api.post("/api/users/login", {"email": ada.email, "password": PASSWORD}).status_code == 401
    assert api.sign_up(email=ada.email).id != ada.id


def test_deleting_twice_is_404(ada, admin):
    assert [admin.delete(ada.path).status_code for _ in range(2)] == [204, 404]


def test_the_last_enabled_admin_stays(api: Api, admin):
    other = api.log_in(api.sign_up().email)
    admin.put(f"/api/users/role/{other.id}", {"roles": ["user", "admin"]})
    other = other.log_in()
    admin.put(other.path, {"enabled": False})

    answers = [
        admin.put(f"/api/users/role/{admin.id}", {"roles": ["user"]}),
        admin.put(admin.path, {"enabled": False}),
        admin.delete(admin.path),
    ]

    assert [answer.status_code for answer in answers] == [409, 409, 409]
    assert {answer.get_json()["code"] for answer in answers} == {"last_admin"}
    assert admin.get("/api/users/").status_code == 200


def test_an_admin_may_go_while_another_is_left(api: Api, ada, admin):
    admin.put(f"/api/users/role/{ada.id}", {"roles": ["user", "admin"]})

    assert admin.put(f"/api/users/role/{admin.id}", {"roles": ["user"]}).status_code == 200


def test_a_wrong_method_is_405_with_the_allowed_ones(api: Api):
    response = api.call("PATCH", "/api/users/login")

    assert response.status_code == 405
    assert "POST" in response.headers["Allow"]
    assert response.get_json()["code"] == "method_not_allowed"


def test_the_key_set_is_public_and_holds_no_private_numbers(api: Api):
    response = api.get("/.well-known/jwks.json")

    (key,) = response.get_json()["keys"]
    assert set(key) == {"kty", "kid", "use", "alg", "n", "e"}
    assert (key["kid"], key["alg"], key["use"]) == ("test-key", "RS256", "sig")


def test_a_forged_user_header_changes_nothing(api: Api, ada, admin):
    response = ada.get("/api/users/", headers={"X-User-Id": admin.id, "X-User-Roles": "admin"})

    assert response.status_code == 403
