"""What both engines promise: the real one, and the fake that the other tests trust."""

from __future__ import annotations

import json
import socketserver
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from services.executor import runtime as rt
from services.executor.docker_runtime import DockerRuntime
from services.executor.tests.fake_runtime import FakeEngine, FakeRuntime
from services.executor.tests.fake_scheduler import wait_until

DOCKER_HOST = "unix:///var/run/docker.sock"
INSTANCE = f"contract-{uuid.uuid4().hex[:8]}"
BINARY = ["sh", "-c", "printf 'a\\000\\377b'; printf err >&2"]

Create = Callable[..., str]


@pytest.fixture(params=["fake", pytest.param("docker", marks=pytest.mark.component)])
def runtime(request: pytest.FixtureRequest) -> Iterator[rt.Runtime]:
    if request.param == "fake":
        yield FakeRuntime(FakeEngine())
        return
    request.getfixturevalue("engine")
    real = DockerRuntime(DOCKER_HOST)
    yield real
    for each in real.list_containers(instance=INSTANCE):
        real.kill(each.container_id, "SIGKILL")
        _wait_ended(real, each.container_id)
        real.remove(each.container_id)
    real.close()


@pytest.fixture
def create(runtime: rt.Runtime) -> Create:
    def create_container(*argv: str, name: str = "", **changes: Any) -> str:
        options: dict[str, Any] = {
            "Image": "busybox",
            "Cmd": list(argv or ("true",)),
            "Labels": {rt.LABEL_INSTANCE: INSTANCE, rt.LABEL_RUN: "run-1"},
            "HostConfig": {"NetworkMode": "none", "Init": True, "LogConfig": {"Type": "local", "Config": {}}},
        }
        return runtime.create(name or str(uuid.uuid4()), options | changes)

    return create_container


def test_a_created_container_has_not_started(runtime: rt.Runtime, create: Create):
    container_id = create("true")

    state = _find(runtime, container_id)
    assert state.never_started
    assert not state.exited
    assert state.started_at is None
    assert state.labels[rt.LABEL_RUN] == "run-1"


def test_a_name_can_be_taken_once(runtime: rt.Runtime, create: Create):
    name = str(uuid.uuid4())
    container_id = create("true", name=name)

    with pytest.raises(rt.NameTaken):
        create("true", name=name)

    assert _find(runtime, name).container_id == container_id


def test_a_missing_image_is_told_apart(create: Create):
    with pytest.raises(rt.ImageMissing):
        create("true", Image="no-such-image:1")


def test_an_impossible_image_name_is_told_apart(create: Create):
    with pytest.raises(rt.InvalidReference):
        create("true", Image="Bad:::")


def test_an_exit_code_is_kept(runtime: rt.Runtime, create: Create):
    container_id = create("sh", "-c", "exit 3")

    _run_to_end(runtime, container_id)

    state = _find(runtime, container_id)
    assert state.exited
    assert state.exit_code == 3
    assert not state.oom_killed
    assert state.started_at is not None
    assert state.finished_at is not None


def test_attached_before_its_start_a_container_shows_every_byte(runtime: rt.Runtime, create: Create):
    container_id = create(*BINARY)
    attached = runtime.attach(container_id, on_open=_ignore)

    runtime.start(container_id)

    assert _collect(attached) == {"stdout": b"a\0\xffb", "stderr": b"err"}


def test_the_copy_of_the_output_has_the_same_bytes_after_the_end(runtime: rt.Runtime, create: Create):
    container_id = create(*BINARY)
    _run_to_end(runtime, container_id)

    first = _collect(runtime.follow(container_id, on_open=_ignore))
    second = _collect(runtime.follow(container_id, on_open=_ignore))

    assert first == second == {"stdout": b"a\0\xffb", "stderr": b"err"}


@pytest.mark.parametrize("method", ["attach", "follow"])
def test_another_thread_can_end_a_quiet_stream(runtime: rt.Runtime, create: Create, method: str):
    container_id = create("sleep", "60")
    runtime.start(container_id)
    began = time.monotonic()

    stream = getattr(runtime, method)(container_id, on_open=lambda end: threading.Timer(0.2, end).start())
    with pytest.raises(rt.EngineUnavailable):
        _collect_or_fail_when_running(runtime, container_id, stream)

    assert time.monotonic() - began < 5


def test_a_signal_reaches_a_running_container_only(runtime: rt.Runtime, create: Create):
    container_id = create("sleep", "60")

    assert not runtime.kill(container_id, "SIGTERM")
    runtime.start(container_id)
    assert runtime.kill(container_id, "SIGTERM")
    # A signal that comes before the container's init has taken its place is lost.
    wait_until(lambda: not runtime.kill(container_id, "SIGTERM"))
    wait_until(lambda: _find(runtime, container_id).exited)
    assert _find(runtime, container_id).exit_code == 143
    assert not runtime.kill(container_id, "SIGTERM")
    assert not runtime.kill("no-such-container", "SIGTERM")


def test_sigkill_ends_what_ignores_sigterm(runtime: rt.Runtime, create: Create):
    container_id = create("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done")
    attached = runtime.attach(container_id, on_open=_ignore)
    runtime.start(container_id)
    assert next(attached) == ("stdout", b"ready\n")

    assert runtime.kill(container_id, "SIGTERM")
    assert not _find(runtime, container_id).exited
    assert runtime.kill(container_id, "SIGKILL")

    wait_until(lambda: _find(runtime, container_id).exited)
    assert _find(runtime, container_id).exit_code == 137


def test_a_running_container_is_never_removed(runtime: rt.Runtime, create: Create):
    container_id = create("sleep", "60")
    runtime.start(container_id)

    with pytest.raises(rt.ContainerRuns):
        runtime.remove(container_id)

    assert _find(runtime, container_id).status == "running"


def test_removing_twice_is_harmless(runtime: rt.Runtime, create: Create):
    container_id = create("true")

    runtime.remove(container_id)
    runtime.remove(container_id)

    assert runtime.find(container_id) is None


def test_what_is_gone_cannot_be_started_or_followed(runtime: rt.Runtime, create: Create):
    container_id = create("true")
    runtime.remove(container_id)

    with pytest.raises(rt.ContainerGone):
        runtime.start(container_id)
    with pytest.raises(rt.ContainerGone):
        list(runtime.follow(container_id, on_open=_ignore))
    with pytest.raises(rt.ContainerGone):
        list(runtime.attach(container_id, on_open=_ignore))


def test_the_containers_of_one_system_are_listed_in_every_state(runtime: rt.Runtime, create: Create):
    created, running = create("true"), create("sleep", "60")
    create("true", Labels={rt.LABEL_INSTANCE: "another", rt.LABEL_RUN: "run-2"})
    runtime.start(running)

    found = {each.container_id: each.status for each in runtime.list_containers(instance=INSTANCE)}

    assert found == {created: "created", running: "running"}
    for each in runtime.list_containers(instance="another"):
        runtime.remove(each.container_id)


def test_an_image_is_found_by_name_and_by_id(runtime: rt.Runtime, create: Create):
    image_id = _find(runtime, create("true")).image_id

    assert runtime.find_image("busybox")
    assert runtime.find_image(image_id) == runtime.find_image(image_id)
    assert runtime.find_image("no-such-image:1") is None


@pytest.mark.component
def test_a_registry_that_is_not_there_is_a_failed_pull(engine: object):
    runtime = DockerRuntime(DOCKER_HOST)

    with pytest.raises(rt.PullFailed):
        runtime.pull("127.0.0.1:9/nothing:1", limit=timedelta(seconds=10), on_open=_ignore)


@pytest.mark.component
def test_an_engine_that_is_not_there_is_unavailable():
    runtime = DockerRuntime("unix:///nonexistent/docker.sock")

    with pytest.raises(rt.EngineUnavailable):
        runtime.describe()


@pytest.mark.component
@pytest.mark.parametrize(
    ("status", "failure"),
    [(500, rt.EngineFault), (503, rt.EngineUnavailable), (400, rt.EngineRefused), (409, rt.NameTaken)],
)
def test_an_engines_answer_says_whether_another_try_may_go_better(tmp_path: Path, status: int, failure: type):
    with _answering(tmp_path / "docker.sock", posts=status) as docker_host:
        runtime = DockerRuntime(docker_host)

        with pytest.raises(rt.RuntimeFailure) as raised:
            runtime.create("name", {"Image": "busybox"})

        assert type(raised.value) is failure
        runtime.close()


@pytest.mark.parametrize(
    ("exit_code", "events", "oom_killed"),
    [(137, {"Action": "oom"}, True), (137, None, False), (1, {"Action": "oom"}, False)],
)
def test_an_engine_that_heard_of_it_after_the_exit_tells_an_event_only(
    tmp_path: Path, exit_code: int, events: Mapping[str, str] | None, oom_killed: bool
):
    state = {
        "Status": "exited",
        "ExitCode": exit_code,
        "OOMKilled": False,
        "Error": "",
        "StartedAt": "2026-01-01T00:00:00.1Z",
        "FinishedAt": "2026-01-01T00:00:00.2Z",
    }
    container = {"Id": "c1", "Image": "i1", "Config": {}, "State": state}

    with _answering(tmp_path / "docker.sock", gets={"/containers/": container, "/events": events}) as docker_host:
        runtime = DockerRuntime(docker_host)

        assert _find(runtime, "c1").oom_killed is oom_killed

        runtime.close()


@contextmanager
def _answering(path: Path, *, posts: int = 200, gets: Mapping[str, Any] | None = None) -> Iterator[str]:
    """An engine that answers a GET by a part of its path, else with its version, and a POST with this status."""
    bodies = gets or {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            part = next((each for each in bodies if each in self.path), "")
            self._send(200, bodies.get(part, {"ApiVersion": "1.41"}))

        def do_POST(self) -> None:
            self._send(posts, {"message": "no"})

        def _send(self, code: int, body: Any) -> None:
            data = b"" if body is None else json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def address_string(self) -> str:
            return "a socket"

        def log_message(self, *_args: object) -> None:
            """Quiet."""

    with socketserver.ThreadingUnixStreamServer(str(path), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"unix://{path}"
        finally:
            server.shutdown()
            thread.join()


def _ignore(_end: rt.Interrupt) -> None:
    """Nobody interrupts."""


def _find(runtime: rt.Runtime, name_or_id: str) -> rt.ContainerState:
    state = runtime.find(name_or_id)
    assert state is not None
    return state


def _wait_ended(runtime: rt.Runtime, container_id: str) -> None:
    wait_until(lambda: (state := runtime.find(container_id)) is None or state.exited or state.never_started)


def _run_to_end(runtime: rt.Runtime, container_id: str) -> None:
    runtime.start(container_id)
    wait_until(lambda: _find(runtime, container_id).exited)


def _collect(stream: Iterator[tuple[rt.Stream, bytes]]) -> dict[str, bytes]:
    collected = {"stdout": b"", "stderr": b""}
    for name, data in stream:
        collected[name] += data
    return collected


def _collect_or_fail_when_running(
    runtime: rt.Runtime, container_id: str, stream: Iterator[tuple[rt.Stream, bytes]]
) -> None:
    """A stream may end without an error when it is shut; then the container must be seen running."""
    _collect(stream)
    if not _find(runtime, container_id).exited:
        raise rt.EngineUnavailable("the stream was shut while the container runs")
