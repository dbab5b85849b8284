from __future__ import annotations

import base64
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import jwt
import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from services.gateway.tests.stubs import StubHandler, StubServices, Switch, TokenMaker, running_gateway, unique
from tests.polling import wait_until

pytestmark = pytest.mark.component

OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def call(gateway: str, token: str, path: str = "/api/tasks/1") -> requests.Response:
    return requests.get(f"{gateway}{path}", headers={"Authorization": f"Bearer {token}"}, timeout=5)


def encode(part: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def unsigned(tokens: TokenMaker) -> str:
    return f"{encode({'alg': 'none', 'kid': tokens.kid})}.{encode(tokens.claims())}."


def signed_with_the_public_key(tokens: TokenMaker) -> str:
    pem = tokens.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    signing_input = f"{encode({'alg': 'HS256', 'kid': tokens.kid})}.{encode(tokens.claims())}"
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(signing_input.encode(), pem)
    return f"{signing_input}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def tampered(tokens: TokenMaker) -> str:
    header, _, signature = tokens.make().split(".")
    return f"{header}.{encode(tokens.claims(roles=['admin']))}.{signature}"


def without(claim: str, tokens: TokenMaker) -> str:
    claims = tokens.claims()
    del claims[claim]
    return jwt.encode(claims, tokens.key, algorithm="RS256", headers={"kid": tokens.kid})


def with_its_own_key(tokens: TokenMaker) -> str:
    public = jwt.algorithms.RSAAlgorithm.to_jwk(OTHER_KEY.public_key(), as_dict=True)
    headers = {"kid": "mine", "jwk": public, "jku": "http://127.0.0.1:1/jwks.json", "x5u": "http://127.0.0.1:1/"}
    return jwt.encode(tokens.claims(), OTHER_KEY, algorithm="RS256", headers=headers)


ATTACKS: dict[str, Callable[[TokenMaker], str]] = {
    "no signature": unsigned,
    "HS256 with the public key": signed_with_the_public_key,
    "another key": lambda tokens: tokens.make(key=OTHER_KEY),
    "a key of its own": with_its_own_key,
    "an unknown kid": lambda tokens: tokens.make(kid="unknown"),
    "a kid that is a path": lambda tokens: tokens.make(kid="../../x"),
    "a tampered payload": tampered,
    "expired": lambda tokens: tokens.make(exp=int(time.time()) - 1),
    "not valid yet": lambda tokens: tokens.make(iat=int(time.time()) + 600),
    "another issuer": lambda tokens: tokens.make(iss="someone"),
    "another audience": lambda tokens: tokens.make(aud="someone"),
    **{f"no {claim}": partial(without, claim) for claim in TokenMaker().claims()},
    "a sub that is no id": lambda tokens: tokens.make(sub="admin"),
    "roles that are no list": lambda tokens: tokens.make(roles="admin"),
    "PS256": lambda tokens: tokens.make(algorithm="PS256"),
    "garbage": lambda _: "a.b.c",
    "one word": lambda _: "x",
    "deep nesting": lambda _: f"{base64.urlsafe_b64encode(b'[' * 5000).decode()}.e30.e30",
    "a personal access token that nobody made": lambda _: "trp_" + "x" * 32,
    "a personal access token of odd letters": lambda _: "trp_../../internal/" + "x" * 32,
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("path", ["/api/tasks/1", "/api/users/1"])
def test_a_bad_token_gets_nowhere(gateway, services: StubServices, tokens: TokenMaker, attack: str, path: str):
    response = call(gateway, ATTACKS[attack](tokens), path)

    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert response.headers["Content-Type"] == "application/problem+json"
    assert services.to(path) == []


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic YTpi", "Token x"])
def test_another_scheme_or_an_empty_token_gets_nowhere(gateway, services: StubServices, header: str):
    response = requests.get(f"{gateway}/api/tasks", headers={"Authorization": header})

    assert response.status_code == 401
    assert services.to("/api/tasks") == []


def test_without_a_token_only_open_paths_are_reached(gateway, services: StubServices):
    assert requests.get(f"{gateway}/api/tasks/").status_code == 401
    assert requests.post(f"{gateway}/api/users/").status_code == 401
    assert requests.get(f"{gateway}/api/users/1").status_code == 200
    assert requests.post(f"{gateway}/api/users/refresh", json={}).status_code == 200
    assert requests.get(f"{gateway}/.well-known/jwks.json").status_code == 200


def test_an_open_path_ignores_a_token_that_has_expired(gateway, services: StubServices, tokens: TokenMaker):
    headers = {"Authorization": f"Bearer {tokens.make(exp=int(time.time()) - 1)}"}

    response = requests.post(f"{gateway}/api/users/refresh", json={}, headers=headers)

    assert response.status_code == 200
    assert services.last.header("Authorization") is None


def test_a_session_is_asked_about_once_in_four_seconds(gateway, services: StubServices, tokens: TokenMaker):
    token = tokens.make()

    statuses = [call(gateway, token).status_code for _ in range(5)]

    assert statuses == [200] * 5
    assert len(services.to("/internal/sessions/check")) == 1


def test_an_ended_session_is_refused_within_five_seconds(gateway, services: StubServices, tokens: TokenMaker):
    session = "5e3a3c0e-7d15-4b61-8d39-1f6a6a0f6c11"
    token = tokens.make(sid=session)
    assert call(gateway, token).status_code == 200

    services.ended_sessions.add(session)

    wait_until(lambda: call(gateway, token).status_code == 401, seconds=5)


def test_nobody_is_let_in_while_no_one_can_tell_whether_the_session_lives(
    gateway, services: StubServices, tokens: TokenMaker
):
    services.answers["/internal/sessions/check"] = StubHandler.break_off

    response = call(gateway, tokens.make())

    assert response.status_code == 503
    assert response.json()["code"] == "unavailable"
    assert "Retry-After" in response.headers
    assert services.to("/api/tasks/1") == []


@pytest.mark.parametrize("answer", [(500, {}), (200, {}), (200, {"active": "yes"}), (200, [])])
def test_an_odd_answer_about_a_session_lets_nobody_in(gateway, services: StubServices, tokens: TokenMaker, answer):
    services.answers["/internal/sessions/check"] = lambda handler: handler.answer(*answer)

    assert call(gateway, tokens.make()).status_code == 503


def test_a_personal_access_token_is_traded_once_and_passed_on_as_an_access_token(
    gateway, services: StubServices, tokens: TokenMaker
):
    personal, access = f"trp_{unique('personal-token')}", tokens.make()
    services.personal_tokens[personal] = access

    statuses = [call(gateway, personal).status_code for _ in range(3)]

    assert statuses == [200] * 3
    assert services.last.header("Authorization") == f"Bearer {access}"
    assert len(services.to("/internal/tokens/exchange")) == 1


def test_a_deleted_personal_access_token_is_refused_within_five_seconds(
    gateway, services: StubServices, tokens: TokenMaker
):
    session = "9b1d9ff2-96cf-4a0e-9a55-6e8a53a6a3b2"
    personal = f"trp_{unique('personal-token')}"
    services.personal_tokens[personal] = tokens.make(sid=session)
    assert call(gateway, personal).status_code == 200

    services.personal_tokens.clear()
    services.ended_sessions.add(session)

    wait_until(lambda: call(gateway, personal).status_code == 401, seconds=5)


def test_a_personal_access_token_is_traded_anew_when_a_new_role_has_ended_what_it_was_traded_for(
    gateway, services: StubServices, tokens: TokenMaker
):
    session = "5f0c2a5e-0a3f-4d0c-9a7e-3c8a35a1a7f4"
    personal, after = f"trp_{unique('personal-token')}", tokens.make()
    services.personal_tokens[personal] = tokens.make(sid=session)
    assert call(gateway, personal).status_code == 200

    services.personal_tokens[personal] = after
    services.ended_sessions.add(session)

    statuses: set[int] = set()

    def is_traded_anew() -> bool:
        statuses.add(call(gateway, personal).status_code)
        return len(services.to("/internal/tokens/exchange")) == 2

    wait_until(is_traded_anew, seconds=5)
    assert statuses == {200}
    assert services.last.header("Authorization") == f"Bearer {after}"


def test_a_key_that_appears_later_is_found(gateway, services: StubServices, tokens: TokenMaker):
    other = TokenMaker()
    other.kid = unique("kid")
    keys = {"keys": [*tokens.jwks()["keys"], *other.jwks()["keys"]]}
    services.answers["/.well-known/jwks.json"] = lambda handler: handler.answer(200, keys)

    wait_until(lambda: call(gateway, other.make()).status_code == 200, seconds=5)


def test_without_redis_sessions_are_still_checked_and_nobody_waits(
    services: StubServices, tokens: TokenMaker, redis_switch: Switch
):
    with running_gateway(services, f"redis://127.0.0.1:{redis_switch.port}/0") as gateway:
        token = tokens.make()
        assert call(gateway, token).status_code == 200

        redis_switch.cut()
        first = call(gateway, token)
        started = time.monotonic()
        statuses = [call(gateway, token).status_code for _ in range(10)]
        elapsed = time.monotonic() - started

        assert first.status_code == 200
        assert statuses == [200] * 10
        assert elapsed < 1
        services.answers["/internal/sessions/check"] = StubHandler.break_off
        assert call(gateway, token).status_code == 503


def test_a_redis_that_does_not_answer_costs_one_request_a_moment_and_is_used_again_when_it_does(
    services: StubServices, tokens: TokenMaker, redis_switch: Switch
):
    with running_gateway(services, f"redis://127.0.0.1:{redis_switch.port}/0") as gateway:
        assert call(gateway, tokens.make()).status_code == 200

        redis_switch.clog()
        answers = [call(gateway, tokens.make()) for _ in range(10)]
        redis_switch.connect()

        assert [answer.status_code for answer in answers] == [200] * 10
        # One has waited for Redis, and most of the others haven't.
        seconds = [answer.elapsed.total_seconds() for answer in answers]
        assert statistics.median(seconds) < max(seconds) / 2
        wait_until(lambda: _asked_once_for_two_calls(gateway, services, tokens), seconds=5)


def test_health_says_that_redis_is_away_although_nothing_else_was_asked_of_it(
    services: StubServices, redis_switch: Switch
):
    with running_gateway(services, f"redis://127.0.0.1:{redis_switch.port}/0") as gateway:
        redis_switch.cut()

        report = requests.get(f"{gateway}/api/health", timeout=5).json()

        assert report["services"]["gateway"] == {
            "status": "degraded",
            "latencyMs": 0.0,
            "checks": {"redis": {"status": "down"}},
        }


def _asked_once_for_two_calls(gateway: str, services: StubServices, tokens: TokenMaker) -> bool:
    token = tokens.make()
    services.received.clear()
    call(gateway, token)
    call(gateway, token)
    return len(services.to("/internal/sessions/check")) == 1


def test_a_token_that_was_good_is_refused_from_its_end_on(gateway, services: StubServices, tokens: TokenMaker):
    end = int(time.time()) + 2
    token = tokens.make(exp=end)
    assert call(gateway, token).status_code == 200

    wait_until(lambda: call(gateway, token).status_code == 401, seconds=4)

    assert time.time() >= end
