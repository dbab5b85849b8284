from __future__ import annotations

import time

import pytest

from libs.common.errors import BadGateway, GatewayTimeout
from services.gateway import upstream as upstream_module
from services.gateway.tests.stubs import StubHandler, StubServices
from services.gateway.upstream import Call, Upstream

pytestmark = pytest.mark.component


@pytest.fixture
def upstream(services: StubServices) -> Upstream:
    return Upstream("scheduler", services.url, connections=4, read_seconds=0.2)


def fetch(upstream: Upstream) -> None:
    status, _ = upstream.fetch_json(Call("GET", "/api/tasks/1"))
    assert status == 200


def test_connections_are_used_again(upstream: Upstream, services: StubServices):
    for _ in range(5):
        fetch(upstream)

    assert len({request.port for request in services.received}) == 1


def test_a_connection_that_was_idle_for_long_is_not_used_again(
    upstream: Upstream, services: StubServices, monkeypatch: pytest.MonkeyPatch
):
    fetch(upstream)
    monkeypatch.setattr(upstream_module, "IDLE_SECONDS", 0.0)
    fetch(upstream)

    assert len({request.port for request in services.received}) == 2


def test_a_connection_that_the_service_closed_meanwhile_costs_nothing(upstream: Upstream, services: StubServices):
    def close_after(handler: StubHandler) -> None:
        handler.close_connection = True
        handler.answer(200, {})

    services.answers["/api/tasks/1"] = close_after
    for _ in range(3):
        response = upstream.send(Call("GET", "/api/tasks/1"))
        assert response.read() == b"{}"

    assert len(services.received) == 3


def test_a_service_that_does_not_answer_is_a_504_and_is_not_asked_again(
    upstream: Upstream, services: StubServices
):
    services.answers["/api/tasks/1"] = _never

    with pytest.raises(GatewayTimeout):
        upstream.send(Call("GET", "/api/tasks/1"))

    assert len(services.to("/api/tasks/1")) == 1


def _never(handler: StubHandler) -> None:
    time.sleep(1)
    handler.break_off()


@pytest.mark.parametrize("content", [b"<html>", b"", b"\xff"])
def test_an_answer_that_should_be_json_and_is_not_is_a_502(
    upstream: Upstream, services: StubServices, content: bytes
):
    services.answers["/readyz"] = lambda handler: handler.answer(200, content)

    with pytest.raises(BadGateway):
        upstream.fetch_json(Call("GET", "/readyz"))
