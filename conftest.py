"""Tests without a marker are unit tests: fast, and without the network."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
from pytest_socket import disable_socket, enable_socket
from xdist.scheduler import LoadScopeScheduling

pytest_plugins = ["tests.servers"]

NETWORK_MARKERS = ("component", "integration", "faults", "failpoints", "mutations")

# A busy machine is slow, and no test is about time.
hypothesis.settings.register_profile("task-runner", deadline=None)
hypothesis.settings.load_profile("task-runner")


class OneSystemScheduling(LoadScopeScheduling):
    """Tests go to whichever process is free; those of the composed system all to one, for it is one system."""

    def _split_scope(self, nodeid: str) -> str:
        return "composed system" if nodeid.startswith("tests/integration/") else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneSystemScheduling:
    return OneSystemScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The longest piece first, so that both processes end together.
    items.sort(key=lambda item: item.get_closest_marker("integration") is None)


@pytest.fixture(autouse=True)
def _network_only_where_marked(request: pytest.FixtureRequest):
    if any(request.node.get_closest_marker(name) for name in NETWORK_MARKERS):
        yield
        return
    disable_socket(allow_unix_socket=True)
    yield
    enable_socket()
