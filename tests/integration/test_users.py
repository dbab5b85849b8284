from __future__ import annotations

from typing import Any

import pytest

from tests.integration.client import (
    PASSWORD,
    Api,
    User,
    expect,
    expect_problem,
    in_seconds,
    log_in,
    new_email,
    new_signup,
    sign_up,
)
from tests.polling import wait_until

pytestmark = pytest.mark.integration

EVERYTHING = {"id", "name", "email", "roles", "enabled", "createdAt", "updatedAt"}
TOKENS = {"token", "tokenType", "expiresIn", "refreshToken"}
NOBODY = "00000000-0000-4000-8000-000000000000"
# What the API promises for tokens that have ended.
REVOCATION_SECONDS = 5.0


def new_user(**fields: Any) -> dict[str, Any]:
    return new_signup(roles=["user"]) | fields


def is_refused(api: Api) -> bool:
    return api.get("/api/users/me").status_code == 401


def assert_ends_in_time(api: Api) -> None:
    wait_until(lambda: is_refused(api), what="the token ended", seconds=REVOCATION_SECONDS)


def test_signing_up_makes_a_user_who_is_logged_in(anyone: Api):
    body = new_signup(name="Ada Lovelace")

    response = anyone.post("/api/users/signup", body)

    answer = expect(response, 201)
    assert set(answer) == EVERYTHING | TOKENS
    assert (answer["name"], answer["email"], answer["roles"]) == ("Ada Lovelace", body["email"], ["user"])
    assert (answer["enabled"], answer["tokenType"]) == (True, "Bearer")
    assert answer["expiresIn"] > 0
    assert expect(anyone.get("/api/users/me", token=answer["token"]), 200)["id"] == answer["id"]


def test_logging_in_answers_the_user_and_a_token(anyone: Api, user: User):
    answer = expect(anyone.post("/api/users/login", {"email": user.email.upper(), "password": user.password}), 200)

    assert set(answer) == EVERYTHING | TOKENS
    assert answer["id"] == user.id
    assert expect(anyone.get("/api/users/me", token=answer["token"]), 200)["id"] == user.id


def test_a_wrong_password_and_an_unknown_email_are_told_the_same(anyone: Api, user: User):
    wrong = anyone.post("/api/users/login", {"email": user.email, "password": "not the password"})
    unknown = anyone.post("/api/users/login", {"email": new_email(), "password": "not the password"})

    first, second = expect_problem(wrong, 401), expect_problem(unknown, 401)
    assert {**first, "requestId": ""} == {**second, "requestId": ""}


def test_an_email_belongs_to_one_user_however_it_is_written(anyone: Api, user: User):
    response = anyone.post("/api/users/signup", new_signup(email=user.email.upper()))

    expect_problem(response, 409, "email_taken")


def test_an_admin_creates_users(admin: User):
    body = new_user(name="Grace", roles=["user", "admin"])

    response = admin.api.post("/api/users/", body)

    created = expect(response, 201)
    assert set(created) == EVERYTHING
    assert (created["name"], sorted(created["roles"])) == ("Grace", ["admin", "user"])
    assert log_in(admin.api.url, body["email"], body["password"]).id == created["id"]
    expect(admin.api.delete(f"/api/users/{created['id']}"), 204)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/users/"),
        ("POST", "/api/users"),
        ("GET", "/api/users/"),
        ("PUT", f"/api/users/role/{NOBODY}"),
    ],
)
def test_admin_paths_are_for_admins(anyone: Api, user: User, method: str, path: str):
    body = {"roles": ["admin"]} if method == "PUT" else new_user()
    options = {} if method == "GET" else {"json": body}

    expect_problem(user.api.call(method, path, **options), 403)
    expect_problem(anyone.call(method, path, **options), 401)


def test_without_a_token_and_for_others_a_user_is_only_id_and_name(anyone: Api, user: User, stranger: User):
    expected = {"id": user.id, "name": "Ada"}

    assert expect(anyone.get(f"/api/users/{user.id}"), 200) == expected
    assert expect(stranger.api.get(f"/api/users/{user.id}"), 200) == expected


def test_self_and_admins_see_everything_of_a_user(admin: User, user: User):
    for api in (user.api, admin.api):
        assert set(expect(api.get(f"/api/users/{user.id}"), 200)) == EVERYTHING


@pytest.mark.parametrize("unknown", [NOBODY, "not-an-id", "1", "%F0%9F%90%B3"])
def test_an_unknown_user_is_not_found(anyone: Api, admin: User, unknown: str):
    expect_problem(anyone.get(f"/api/users/{unknown}"), 404)
    expect_problem(admin.api.put(f"/api/users/{unknown}", {"name": "x"}), 404)
    expect_problem(admin.api.delete(f"/api/users/{unknown}"), 404)
    expect_problem(admin.api.put(f"/api/users/role/{unknown}", {"roles": ["user"]}), 404)


def test_a_user_changes_name_email_and_password(url: str):
    user = sign_up(url)
    email, password = new_email(), "another password"
    change = {"name": "Countess", "email": email, "password": password, "passwordConfirm": password}

    changed = expect(user.api.put(f"/api/users/{user.id}", change), 200)

    assert (changed["name"], changed["email"]) == ("Countess", email)
    assert log_in(url, email, password).id == user.id
    expect_problem(Api(url).post("/api/users/login", {"email": user.email, "password": PASSWORD}), 401)
    assert_ends_in_time(user.api)


def test_nobody_changes_or_deletes_another_user(user: User, stranger: User):
    assert stranger.api.put(f"/api/users/{user.id}", {"name": "Mine"}).status_code in (403, 404)
    assert stranger.api.delete(f"/api/users/{user.id}").status_code in (403, 404)
    assert expect(user.api.get("/api/users/me"), 200)["name"] == "Ada"


def test_only_an_admin_disables_and_the_disabled_are_out_within_five_seconds(url: str, admin: User):
    user = sign_up(url)
    expect_problem(user.api.put(f"/api/users/{user.id}", {"enabled": False}), 403)

    expect(admin.api.put(f"/api/users/{user.id}", {"enabled": False}), 200)

    expect_problem(Api(url).post("/api/users/login", {"email": user.email, "password": user.password}), 401)
    assert_ends_in_time(user.api)


def test_a_change_of_roles_ends_older_tokens_and_new_ones_have_the_roles(url: str, admin: User):
    user = sign_up(url)
    expect_problem(user.api.get("/api/users/"), 403)

    changed = expect(admin.api.put(f"/api/users/role/{user.id}", {"roles": ["user", "admin"]}), 200)

    assert sorted(changed["roles"]) == ["admin", "user"]
    assert_ends_in_time(user.api)
    again = log_in(url, user.email, user.password)
    assert expect(again.api.get("/api/users/"), 200)["items"]
    expect(admin.api.delete(f"/api/users/{user.id}"), 204)


def test_the_last_admin_stays(admin: User):
    for other in list_admins(admin):
        if other["id"] != admin.id:
            expect(admin.api.delete(f"/api/users/{other['id']}"), 204)

    refusals = [
        admin.api.put(f"/api/users/role/{admin.id}", {"roles": ["user"]}),
        admin.api.put(f"/api/users/{admin.id}", {"enabled": False}),
        admin.api.delete(f"/api/users/{admin.id}"),
    ]

    for response in refusals:
        expect_problem(response, 409, "last_admin")
    assert "admin" in expect(admin.api.get("/api/users/me"), 200)["roles"]


def list_admins(admin: User) -> list[dict[str, Any]]:
    found, cursor = [], ""
    while cursor is not None:
        page = expect(
            admin.api.get("/api/users/", params={"limit": 200} | ({"cursor": cursor} if cursor else {})), 200
        )
        found += [one for one in page["items"] if "admin" in one["roles"]]
        cursor = page["nextCursor"]
    return found


def test_a_deleted_user_is_gone_and_their_waiting_tasks_are_cancelled(url: str, admin: User):
    user = sign_up(url)
    waiting = user.api.create_task("true", scheduledAt=in_seconds(3600))

    expect(user.api.delete(f"/api/users/{user.id}"), 204)

    expect_problem(admin.api.get(f"/api/users/{user.id}"), 404)
    expect_problem(Api(url).post("/api/users/login", {"email": user.email, "password": user.password}), 401)
    assert_ends_in_time(user.api)
    admin.api.wait_for(waiting["id"], "cancelled", seconds=60)


def test_the_list_of_users_comes_in_pages_newest_first(url: str, admin: User):
    newest = [sign_up(url).id for _ in range(3)][::-1]

    first = expect(admin.api.get("/api/users", params={"limit": 2}), 200)
    second = expect(admin.api.get("/api/users/", params={"limit": 2, "cursor": first["nextCursor"]}), 200)

    assert [one["id"] for one in first["items"] + second["items"]][:3] == newest
    assert not {one["id"] for one in first["items"]} & {one["id"] for one in second["items"]}


def test_a_refresh_token_works_once_and_its_second_use_ends_the_family(url: str):
    user, anyone = sign_up(url), Api(url)

    fresh = expect(anyone.post("/api/users/refresh", {"refreshToken": user.refresh_token}), 200)

    assert fresh["refreshToken"] != user.refresh_token
    assert expect(anyone.get("/api/users/me", token=fresh["token"]), 200)["id"] == user.id
    expect_problem(anyone.post("/api/users/refresh", {"refreshToken": user.refresh_token}), 401)
    expect_problem(anyone.post("/api/users/refresh", {"refreshToken": fresh["refreshToken"]}), 401)
    assert_ends_in_time(Api(url, fresh["token"]))


def test_logging_out_ends_this_session_and_no_other(url: str):
    here = sign_up(url)
    there = log_in(url, here.email, here.password)

    expect(here.api.post("/api/users/logout"), 204)

    assert_ends_in_time(here.api)
    expect_problem(Api(url).post("/api/users/refresh", {"refreshToken": here.refresh_token}), 401)
    expect(there.api.get("/api/users/me"), 200)


def test_a_personal_access_token_works_everywhere_until_it_is_deleted(url: str, user: User):
    created = expect(user.api.post("/api/users/me/tokens", {"name": "laptop"}), 201)
    holder = Api(url, created["token"])

    assert created["token"].startswith("trp_")
    assert expect(holder.get("/api/users/me"), 200)["id"] == user.id
    assert holder.run("echo", "by token")["result"] == "by token\n"
    listed = expect(user.api.get("/api/users/me/tokens"), 200)["items"]
    assert created["id"] in [one["id"] for one in listed]
    assert created["token"] not in str(listed)

    expect(user.api.delete(f"/api/users/me/tokens/{created['id']}"), 204)

    assert_ends_in_time(holder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "x" * 101),
        ("name", "NUL\0"),
        ("name", 7),
        ("name", None),
        ("email", "nobody"),
        ("email", "a@b@c"),
        ("email", ["a@example.org"]),
        ("email", f"{'x' * 300}@example.org"),
        ("password", "seven77"),
        ("password", "x" * 73),
        ("password", "ä" * 37),
        ("passwordConfirm", "something else"),
        ("roles", ["admin"]),
        ("isAdmin", True),
    ],
)
def test_a_signup_that_is_wrong_says_where(anyone: Api, field: str, value: Any):
    body = new_signup(**{field: value})
    if field == "password":
        body["passwordConfirm"] = value

    problem = expect_problem(anyone.post("/api/users/signup", body), 422)

    assert field in problem["errors"]


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "x" * 100},
        {"name": "Ærøskøbing 🐳"},
        {"password": "x" * 8, "passwordConfirm": "x" * 8},
        {"password": "ä" * 36, "passwordConfirm": "ä" * 36},
    ],
)
def test_what_is_just_within_the_limits_is_fine(url: str, fields: dict[str, Any]):
    user = sign_up(url, **fields)

    assert log_in(url, user.email, user.password).id == user.id


@pytest.mark.parametrize("roles", [[], ["root"], "admin", None])
def test_roles_are_some_of_the_known_ones(admin: User, user: User, roles: Any):
    expect_problem(admin.api.put(f"/api/users/role/{user.id}", {"roles": roles}), 422)
    expect_problem(admin.api.post("/api/users/", new_user(roles=roles)), 422)
