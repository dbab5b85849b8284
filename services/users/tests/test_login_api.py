"""Signing up, logging in, refreshing and logging out (API: Users)."""

from __future__ import annotations

import statistics
import time

import jwt
import pytest

from services.users.passwords import PasswordHasher
from services.users.tests.builders import PASSWORD, Api, a_signup, an_email, read_claims
from services.users.tests.conftest import KID

pytestmark = pytest.mark.component

USER_KEYS = {"id", "name", "email", "roles", "enabled", "createdAt", "updatedAt"}
TOKEN_KEYS = {"token", "tokenType", "expiresIn", "refreshToken"}


def test_signup_answers_the_user_and_a_token_that_works(api: Api):
    body = a_signup(name="Ada")

    response = api.post("/api/users/signup", body)

    answer = response.get_json()
    assert response.status_code == 201
    assert set(answer) == USER_KEYS | TOKEN_KEYS
    assert (answer["name"], answer["email"], answer["roles"]) == ("Ada", body["email"], ["user"])
    assert (answer["enabled"], answer["tokenType"], answer["expiresIn"]) == (True, "Bearer", 3600)
    assert response.headers["Location"] == f"/api/users/{answer['id']}"
    assert response.headers["Cache-Control"] == "no-store"
    assert api.get("/api/users/me", token=answer["token"]).get_json()["id"] == answer["id"]


def test_login_answers_the_user_and_a_token_that_works(api: Api, ada):
    response = api.post("/api/users/login", {"email": ada.email, "password": PASSWORD})

    answer = response.get_json()
    assert response.status_code == 200
    assert set(answer) == USER_KEYS | TOKEN_KEYS
    assert api.get("/api/users/me", token=answer["token"]).get_json()["id"] == ada.id


@pytest.mark.parametrize("path", ["/api/users/signup/", "/api/users/login/"])
def test_paths_work_with_a_final_slash_too(api: Api, path: str):
    response = api.post(path, {})

    assert response.status_code == 422


def test_the_token_carries_the_claims_of_the_contract(ada):
    claims = read_claims(ada.token)

    assert jwt.get_unverified_header(ada.token) == {"alg": "RS256", "kid": KID, "typ": "JWT"}
    assert set(claims) == {"iss", "aud", "sub", "roles", "iat", "exp", "jti", "sid", "ver"}
    assert (claims["iss"], claims["aud"], claims["sub"]) == ("task-runner", "task-runner", ada.id)
    assert (claims["roles"], claims["ver"], claims["exp"] - claims["iat"]) == (["user"], 1, 3600)


def test_login_compares_emails_without_case(api: Api):
    email = an_email()
    api.sign_up(email=email)

    response = api.post("/api/users/login", {"email": email.upper(), "password": PASSWORD})

    assert response.status_code == 200
    assert response.get_json()["email"] == email


def test_an_email_in_use_is_refused_in_any_case(api: Api, ada):
    response = api.post("/api/users/signup", a_signup(email=ada.email.upper()))

    assert response.status_code == 409
    assert response.get_json()["code"] == "email_taken"


def test_wrong_password_unknown_email_and_disabled_user_get_the_same_answer(api: Api, ada, admin):
    eve = api.sign_up()
    admin.put(eve.path, {"enabled": False})

    answers = [
        api.post("/api/users/login", {"email": email, "password": password})
        for email, password in [
            (ada.email, "wrong password"),
            (an_email(), PASSWORD),
            ("no email at all", PASSWORD),
            (eve.email, PASSWORD),
            (ada.email, "x" * 100),
        ]
    ]

    bodies = [answer.get_json() for answer in answers]
    for body in bodies:
        body.pop("requestId")
    assert {answer.status_code for answer in answers} == {401}
    assert all(body == bodies[0] for body in bodies)
    assert bodies[0]["code"] == "login_refused"
    assert answers[0].headers["WWW-Authenticate"] == "Bearer"


def test_a_password_of_which_only_the_first_72_bytes_match_is_refused(api: Api):
    person = api.sign_up(password="x" * 72)

    response = api.post("/api/users/login", {"email": person.email, "password": "x" * 73})

    assert response.status_code == 401


def test_an_unknown_email_takes_as_long_as_a_wrong_password(pool, app_over):
    # Some 40 ms a hash, beside which everything else is small.
    api = Api(app_over(pool, passwords=PasswordHasher(rounds=9, parallel=1, line=1)))
    slow = api.sign_up()

    def seconds(email: str) -> float:
        started = time.perf_counter()
        api.post("/api/users/login", {"email": email, "password": "wrong password"})
        return time.perf_counter() - started

    pairs = [(seconds(slow.email), seconds(an_email())) for _ in range(9)]

    known, unknown = (statistics.median(times) for times in zip(*pairs, strict=True))
    assert abs(known - unknown) < 0.5 * max(known, unknown)


def test_refresh_gives_new_tokens_of_the_same_session(api: Api, ada):
    response = api.post("/api/users/refresh", {"refreshToken": ada.refresh_token})

    answer = response.get_json()
    assert response.status_code == 200
    assert set(answer) == USER_KEYS | TOKEN_KEYS
    assert answer["refreshToken"] != ada.refresh_token
    assert read_claims(answer["token"])["sid"] == read_claims(ada.token)["sid"]
    assert api.get("/api/users/me", token=answer["token"]).status_code == 200


def test_a_refresh_token_used_twice_ends_the_whole_session(api: Api, ada):
    second = api.post("/api/users/refresh", {"refreshToken": ada.refresh_token}).get_json()

    reused = api.post("/api/users/refresh", {"refreshToken": ada.refresh_token})

    assert reused.status_code == 401
    assert api.post("/api/users/refresh", {"refreshToken": second["refreshToken"]}).status_code == 401
    assert not api.is_active(ada)


def test_a_reused_refresh_token_leaves_other_sessions_alone(api: Api, ada):
    elsewhere = ada.log_in()
    api.post("/api/users/refresh", {"refreshToken": ada.refresh_token})
    api.post("/api/users/refresh", {"refreshToken": ada.refresh_token})

    assert api.is_active(elsewhere)


@pytest.mark.parametrize("token", ["", "x", "trr_" + "A" * 43, "é" * 100])
def test_an_unknown_refresh_token_is_refused(api: Api, token: str):
    response = api.post("/api/users/refresh", {"refreshToken": token})

    assert response.status_code == 401
    assert response.get_json()["code"] == "refresh_refused"


def test_an_expired_refresh_token_is_refused(api: Api, pool, ada):
    with pool.connection() as connection:
        connection.execute("UPDATE users.refresh_tokens SET expires_at = now() - interval '1 s'")

    response = api.post("/api/users/refresh", {"refreshToken": ada.refresh_token})

    assert response.status_code == 401


def test_a_refresh_forgets_the_expired_tokens_of_its_session(api: Api, pool, ada):
    second = api.post("/api/users/refresh", {"refreshToken": ada.refresh_token}).get_json()
    with pool.connection() as connection:
        connection.execute(
            "UPDATE users.refresh_tokens SET expires_at = now() - interval '1 s' WHERE used_at IS NOT NULL"
        )

    api.post("/api/users/refresh", {"refreshToken": second["refreshToken"]})

    with pool.connection() as connection:
        row = connection.execute(
            "SELECT count(*) FROM users.refresh_tokens JOIN users.sessions ON sessions.id = session_id"
            " WHERE account_id = %s",
            (ada.id,),
        ).fetchone()
    assert row["count"] == 2


def test_a_login_clears_away_what_expired_whosever_it_was(api: Api, pool, ada, admin):
    with pool.connection() as connection:
        connection.execute("UPDATE users.sessions SET expires_at = now() WHERE account_id = %s", (ada.id,))

    admin.log_in()

    with pool.connection() as connection:
        row = connection.execute("SELECT count(*) FROM users.sessions WHERE account_id = %s", (ada.id,)).fetchone()
    assert row["count"] == 0
    assert api.is_active(admin)


def test_logout_ends_its_own_session_only(api: Api, ada):
    elsewhere = ada.log_in()

    response = ada.post("/api/users/logout")

    assert (response.status_code, response.data) == (204, b"")
    assert not api.is_active(ada)
    assert api.is_active(elsewhere)
    assert ada.get("/api/users/me").status_code == 401
    assert api.post("/api/users/refresh", {"refreshToken": ada.refresh_token}).status_code == 401


def test_logout_needs_a_token(api: Api):
    assert api.post("/api/users/logout").status_code == 401


def test_only_hashes_of_tokens_and_passwords_are_stored(api: Api, pool, ada):
    personal = ada.post("/api/users/me/tokens", {"name": "ci"}).get_json()["token"]

    with pool.connection() as connection:
        rows = [
            connection.execute(f"TABLE users.{table}").fetchall()
            for table in ("accounts", "sessions", "refresh_tokens", "personal_tokens")
        ]

    stored = str(rows)
    assert PASSWORD not in stored
    assert ada.refresh_token not in stored
    assert personal not in stored
    assert ada.email in stored
