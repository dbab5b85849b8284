from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from libs.common.errors import BadGateway, GatewayTimeout, Unavailable
from services.gateway import upstream as upstream_module
from services.gateway.tests.stubs import StubHandler, StubServices, Switch
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


@pytest.fixture
def restarted(services: StubServices) -> Iterator[Switch]:
    """A way to the services on which nobody answers until it is connected."""
    parts = urlsplit(services.url)
    switch = Switch(str(parts.hostname), parts.port or 80)
    yield switch
    switch.cut()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """What happens in each pause of a request that waits; an empty list when it mustn't wait any more."""
    events: list[Callable[[], object]] = []
    sleep = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: events.pop(0)())
    monkeypatch.setattr(upstream_module, "time", sleep)
    return events


def open_upstream(switch: Switch, **options: float) -> Upstream:
    return Upstream("scheduler", f"http://127.0.0.1:{switch.port}", connections=4, **options)


def test_a_request_waits_for_a_service_that_is_just_being_restarted(
    services: StubServices, restarted: Switch, pauses: list[Callable[[], object]]
):
    upstream = open_upstream(restarted)
    pauses += [int, int, restarted.connect]

    response = upstream.send(Call("POST", "/api/tasks/", body=b"{}"))

    assert response.read()
    assert len(services.to("/api/tasks/")) == 1


def test_a_service_that_is_away_for_longer_keeps_nobody_waiting(
    services: StubServices, restarted: Switch, pauses: list[Callable[[], object]]
):
    upstream = open_upstream(restarted, patience_seconds=0.0)

    with pytest.raises(Unavailable):
        upstream.send(Call("GET", "/api/tasks/1"))

    restarted.connect()
    fetch(upstream)


def test_who_asks_whether_a_service_is_there_is_told_at_once(
    restarted: Switch, pauses: list[Callable[[], object]]
):
    with pytest.raises(Unavailable):
        open_upstream(restarted).fetch_json(Call("GET", "/readyz"), is_patient=False)
