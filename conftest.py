"""Tests without a marker are unit tests: fast, and without the network."""

from __future__ import annotations

import hypothesis
import pytest
from pytest_socket import disable_socket, enable_socket

pytest_plugins = ["tests.servers"]

# A busy machine is slow, and no test is about time.
hypothesis.settings.register_profile("task-runner", deadline=None)
hypothesis.settings.load_profile("task-runner")


@pytest.fixture(autouse=True)
def _network_only_where_marked(request: pytest.FixtureRequest):
    if any(request.node.get_closest_marker(name) for name in ("component", "integration", "faults")):
        yield
        return
    disable_socket(allow_unix_socket=True)
    yield
    enable_socket()
