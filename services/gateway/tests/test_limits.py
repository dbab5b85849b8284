from __future__ import annotations

import socket

import pytest
import requests

from services.gateway.tests.stubs import StubServices, Switch, TokenMaker, running_gateway, unique

pytestmark = pytest.mark.component


def log_in(gateway: str, email: str, **options) -> requests.Response:
    body = {"email": email, "password": "guess"}
    return requests.post(f"{gateway}/api/users/login", json=body, timeout=5, **options)


def assert_too_many(response: requests.Response) -> None:
    assert response.status_code == 429
    assert response.json()["code"] == "rate_limited"
    assert 1 <= int(response.headers["Retry-After"]) <= 3600


def test_guessing_at_one_account_is_slowed_down_and_others_are_not(services: StubServices, fresh_redis_url: str):
    with running_gateway(services, fresh_redis_url, LOGIN_RATE="3/minute") as gateway:
        email = f"{unique('ada')}@example.org"

        statuses = [log_in(gateway, email).status_code for _ in range(3)]

        assert statuses == [200] * 3
        assert_too_many(log_in(gateway, email.upper()))
        assert log_in(gateway, f"{unique('bob')}@example.org").status_code == 200
        assert len(services.to("/api/users/login")) == 4


def test_guessing_from_one_address_is_slowed_down(services: StubServices, fresh_redis_url: str):
    with running_gateway(services, fresh_redis_url, LOGIN_ADDRESS_RATE="3/minute", TRUSTED_PROXIES="1") as gateway:
        here, there = ({"X-Forwarded-For": f"6.6.6.6, {address}"} for address in ("192.0.2.1", "192.0.2.2"))
        for _ in range(3):
            log_in(gateway, f"{unique('ada')}@example.org", headers=here)

        assert_too_many(log_in(gateway, f"{unique('ada')}@example.org", headers=here))
        assert log_in(gateway, f"{unique('ada')}@example.org", headers=there).status_code == 200
        assert services.last.header("X-Forwarded-For") == "192.0.2.2"


def test_signups_from_one_address_are_bounded_also_without_redis(services: StubServices, redis_switch: Switch):
    url = f"redis://127.0.0.1:{redis_switch.port}/0"
    with running_gateway(services, url, SIGNUP_RATE="2/hour") as gateway:
        redis_switch.cut()

        statuses = [requests.post(f"{gateway}/api/users/signup", json={}).status_code for _ in range(2)]

        assert statuses == [200] * 2
        assert_too_many(requests.post(f"{gateway}/api/users/signup/", json={}))


def test_a_service_that_is_away_is_a_503_with_retry_after(
    services: StubServices, tokens: TokenMaker, redis_url: str
):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        with running_gateway(services, redis_url, SCHEDULER_URL=away) as gateway:
            headers = {"Authorization": f"Bearer {tokens.make()}"}

            response = requests.post(f"{gateway}/api/tasks", json={}, headers=headers)

    assert response.status_code == 503
    assert response.json()["code"] == "unavailable"
    assert response.headers["Retry-After"] == "2"
    assert "127.0.0.1" not in response.text
