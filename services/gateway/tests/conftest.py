from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from services.gateway.tests.stubs import StubServices, Switch, TokenMaker, running_gateway, stub_services


@pytest.fixture(scope="session")
def tokens() -> TokenMaker:
    return TokenMaker()


@pytest.fixture(scope="session")
def _services(tokens: TokenMaker) -> Iterator[StubServices]:
    with stub_services(tokens) as services:
        yield services


@pytest.fixture
def services(_services: StubServices) -> StubServices:
    """The services behind the gateway, as if nothing had happened yet."""
    _services.reset()
    return _services


@pytest.fixture(scope="session")
def _gateway(_services: StubServices, redis_url: str) -> Iterator[str]:
    with running_gateway(_services, redis_url) as url:
        yield url


@pytest.fixture
def gateway(_gateway: str, services: StubServices) -> str:
    """The URL of a gateway with the default settings, in front of `services`."""
    return _gateway


@pytest.fixture
def redis_switch(redis_url: str) -> Iterator[Switch]:
    """A way to Redis that can be cut."""
    parts = urlsplit(redis_url)
    switch = Switch(str(parts.hostname), parts.port or 6379)
    switch.connect()
    yield switch
    switch.cut()
