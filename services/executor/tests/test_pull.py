"""Pulling from a registry, on the real engine."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta

import docker
import pytest

from services.executor import runtime as rt
from services.executor.docker_runtime import DockerRuntime
from services.executor.prefetch import Prefetcher
from services.executor.tests.fake_registry import FakeRegistry

pytestmark = pytest.mark.component

LIMIT = timedelta(seconds=20)


@pytest.fixture
def registry(engine: docker.DockerClient) -> Iterator[FakeRegistry]:
    registry = FakeRegistry(uuid.uuid4().hex)
    yield registry
    registry.close()
    for image in engine.images.list(name=f"{registry.host}/found"):
        engine.images.remove(str(image.id), force=True)


@pytest.fixture
def runtime() -> Iterator[DockerRuntime]:
    runtime = DockerRuntime("unix:///var/run/docker.sock")
    yield runtime
    runtime.close()


def test_a_pulled_image_is_known_by_its_digest(runtime: DockerRuntime, registry: FakeRegistry):
    image = f"{registry.host}/found:1"
    assert runtime.find_image(image) is None

    runtime.pull(image, limit=LIMIT, on_open=_ignore)

    assert runtime.find_image(image) == registry.digest


def test_an_image_without_a_tag_is_the_latest(runtime: DockerRuntime, registry: FakeRegistry):
    runtime.pull(f"{registry.host}/found", limit=LIMIT, on_open=_ignore)

    assert runtime.find_image(f"{registry.host}/found:latest") == registry.digest


def test_an_image_is_pulled_by_digest(runtime: DockerRuntime, registry: FakeRegistry):
    image = f"{registry.host}/found@{registry.digest}"

    runtime.pull(image, limit=LIMIT, on_open=_ignore)

    assert runtime.find_image(image) == registry.digest


@pytest.mark.parametrize("image", ["scratch", "host.example:99999/tool:1"])
def test_a_name_that_no_image_can_have_is_not_blamed_on_a_registry(runtime: DockerRuntime, image: str):
    with pytest.raises(rt.InvalidReference):
        runtime.pull(image, limit=LIMIT, on_open=_ignore)


@pytest.mark.parametrize("name", ["unknown:1", "denied:1"])
def test_an_image_that_the_registry_does_not_give_is_not_found(
    runtime: DockerRuntime, registry: FakeRegistry, name: str
):
    with pytest.raises(rt.ImageNotFound):
        runtime.pull(f"{registry.host}/{name}", limit=LIMIT, on_open=_ignore)


def test_a_name_that_cannot_be_one_is_told_apart(runtime: DockerRuntime):
    with pytest.raises(rt.InvalidReference):
        runtime.pull("Bad:::", limit=LIMIT, on_open=_ignore)


def test_a_pull_that_takes_too_long_has_failed(runtime: DockerRuntime, registry: FakeRegistry):
    began = time.monotonic()

    with pytest.raises(rt.PullFailed, match="1 s"):
        runtime.pull(f"{registry.host}/slow:1", limit=timedelta(seconds=1), on_open=_ignore)

    assert time.monotonic() - began < 5


def test_a_pull_is_broken_off_from_another_thread(runtime: DockerRuntime, registry: FakeRegistry):
    began = time.monotonic()

    with pytest.raises(rt.PullInterrupted):
        runtime.pull(f"{registry.host}/slow:1", limit=LIMIT, on_open=lambda end: threading.Timer(0.3, end).start())

    assert time.monotonic() - began < 5


def test_an_image_is_fetched_ahead_once(runtime: DockerRuntime, registry: FakeRegistry):
    image = f"{registry.host}/found:1"
    prefetcher = Prefetcher(runtime=runtime, limit=LIMIT)

    prefetcher.pull_if_missing(image)
    registry.close()
    prefetcher.pull_if_missing(image)

    assert runtime.find_image(image) == registry.digest


def _ignore(_end: rt.Interrupt) -> None:
    """Nobody interrupts."""
