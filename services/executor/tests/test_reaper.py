from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import docker
import pytest

from libs.common.clock import utc_now
from services.executor import runtime as rt
from services.executor.docker_runtime import DockerRuntime
from services.executor.reaper import (
    ANSWER_INTERVAL_SECONDS,
    GRACE_SECONDS,
    IDLE_INTERVAL_SECONDS,
    STOPPING_INTERVAL_SECONDS,
    STREAM_SECONDS,
    Reaper,
)
from services.executor.tests.fake_runtime import FakeContainer, FakeEngine, FakeRuntime, Program
from tests.polling import wait_until

RUN_ID = "6f1c1c0e-4b0e-4f0e-8a1e-0a4b6f1c1c0e"


class FakeQuestions:
    """Answers with the next look, as the sync does."""

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.live: set[str] = set()
        self.away = False
        self.asked: set[str] = set()
        self.broken: list[str] = []

    def holds(self, run_id: str) -> bool:
        return run_id in self.held

    def break_stream(self, run_id: str) -> None:
        self.broken.append(run_id)

    def ask_live(self, run_id: str) -> bool | None:
        if run_id not in self.asked or self.away:
            self.asked.add(run_id)
            return None
        self.asked.discard(run_id)
        return run_id in self.live


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def questions() -> FakeQuestions:
    return FakeQuestions()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reaper(engine: FakeEngine, questions: FakeQuestions, clock: Clock) -> Reaper:
    return Reaper(runtime=FakeRuntime(engine), sync=questions, instance="test", now=utc_now, monotonic=clock)


def leave(
    engine: FakeEngine, *, age_seconds: int = 21, status: str = "exited", run_id: str = RUN_ID, **changes: object
) -> FakeContainer:
    labels = {rt.LABEL_INSTANCE: "test", rt.LABEL_RUN: run_id, rt.LABEL_EPOCH: "1"}
    return engine.add(
        "task",
        options={"Image": "busybox", "Labels": labels},
        status=status,
        created_at=datetime.now(UTC) - timedelta(seconds=age_seconds),
        **changes,
    )


def look(reaper: Reaper, times: int = 6) -> int:
    return sum(reaper.run_once() for _ in range(times))


@pytest.mark.parametrize("status", ["exited", "created", "dead"])
def test_a_leftover_that_no_live_run_owns_is_removed(reaper, engine, status):
    leave(engine, status=status)

    assert look(reaper) == 1
    assert engine.containers == {}
    assert reaper.pause_seconds == IDLE_INTERVAL_SECONDS


def test_nothing_is_touched_before_the_scheduler_has_answered(reaper, engine, questions):
    stopped, running = leave(engine), leave(engine, status="running")
    questions.away = True

    assert look(reaper) == 0
    assert set(engine.containers) == {stopped.container_id, running.container_id}
    assert running.signals == []
    assert reaper.pause_seconds == ANSWER_INTERVAL_SECONDS


@pytest.mark.parametrize("status", ["exited", "created", "running", "paused"])
def test_the_container_of_a_live_run_is_its_holders_whatever_the_epoch_on_the_label(
    reaper, engine, questions, status
):
    container = leave(engine, status=status)
    questions.live.add(RUN_ID)

    assert look(reaper) == 0
    assert container.signals == []
    assert reaper.pause_seconds == IDLE_INTERVAL_SECONDS


@pytest.mark.parametrize("status", ["exited", "running"])
def test_a_held_run_keeps_its_container(reaper, engine, questions, status):
    container = leave(engine, status=status)
    questions.held.add(RUN_ID)

    assert look(reaper) == 0
    assert container.signals == []
    assert questions.asked == set()


def test_what_still_runs_after_its_engine_was_given_up_is_stopped_and_removed(reaper, engine):
    container = leave(engine, status="running")

    assert look(reaper) == 1
    assert container.signals == ["SIGTERM"]
    assert engine.containers == {}


def test_a_leftover_that_ignores_sigterm_is_killed_after_its_grace(reaper, engine, clock):
    stubborn = Program(runs_on=True, ignores_sigterm=True)
    container = leave(engine, status="running", program=stubborn)

    look(reaper)
    assert container.signals == ["SIGTERM"]
    assert reaper.pause_seconds == STOPPING_INTERVAL_SECONDS
    clock.now = GRACE_SECONDS
    assert look(reaper) == 1

    assert container.signals == ["SIGTERM", "SIGKILL"]


def test_an_engine_that_refuses_a_signal_is_asked_again(reaper, engine, clock):
    container = leave(engine, status="running", program=Program(runs_on=True))
    engine.before["kill"] = rt.EngineRefused("server error")

    look(reaper)
    clock.now = GRACE_SECONDS
    assert look(reaper) == 1

    assert container.signals == ["SIGKILL"]


def test_a_container_that_the_engine_is_stuck_with_keeps_no_other_from_being_removed(reaper, engine):
    stuck = leave(engine)
    leave(engine, run_id="6f1c1c0e-4b0e-4f0e-8a1e-0a4b6f1c1c0f")
    remove = reaper._runtime.remove

    def remove_but_one(container_id: str) -> None:
        if container_id == stuck.container_id:
            raise rt.EngineUnavailable("timed out")
        remove(container_id)

    reaper._runtime.remove = remove_but_one
    for _ in range(4):
        with contextlib.suppress(rt.EngineUnavailable):
            reaper.run_once()

    assert list(engine.containers) == [stuck.container_id]


def test_a_run_that_waits_for_output_of_what_ended_long_ago_is_told_to_look(reaper, engine, questions, clock):
    leave(engine, status="exited")
    questions.held.add(RUN_ID)

    reaper.run_once()
    clock.now = STREAM_SECONDS - 1
    reaper.run_once()
    assert questions.broken == []
    clock.now = STREAM_SECONDS
    reaper.run_once()
    reaper.run_once()

    assert questions.broken == [RUN_ID]


def test_a_young_container_is_nobodys_leftover_yet(reaper, engine, questions):
    leave(engine, age_seconds=19)

    assert look(reaper) == 0
    assert questions.asked == set()


def test_a_label_that_is_no_runs_id_is_left_alone(reaper, engine, questions):
    leave(engine, run_id="made-up")

    assert look(reaper) == 0
    assert questions.asked == set()


@pytest.mark.component
def test_on_a_real_engine_a_leftover_is_stopped_with_grace_and_removed(engine_client: docker.DockerClient):
    instance, run_id = f"reaper-{uuid.uuid4().hex[:8]}", str(uuid.uuid4())
    container = engine_client.containers.run(
        "busybox",
        ["sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done"],
        detach=True,
        labels={rt.LABEL_INSTANCE: instance, rt.LABEL_RUN: run_id, rt.LABEL_EPOCH: "1"},
    )
    reaper = Reaper(
        runtime=DockerRuntime("unix:///var/run/docker.sock"),
        sync=FakeQuestions(),
        instance=instance,
        now=lambda: datetime.now(UTC) + timedelta(minutes=1),
    )
    try:
        wait_until(lambda: container.logs() == b"ready\n")
        deadline = time.monotonic() + 8
        while not reaper.run_once():
            assert time.monotonic() < deadline, "the leftover is still there"
            time.sleep(0.1)

        with pytest.raises(docker.errors.NotFound):
            container.reload()
    finally:
        for left in engine_client.containers.list(all=True, filters={"label": f"{rt.LABEL_INSTANCE}={instance}"}):
            left.remove(force=True)


@pytest.fixture
def engine_client() -> Iterator[docker.DockerClient]:
    """The real engine's client; `engine` is this file's fake."""
    client = docker.from_env(timeout=30)
    yield client
    client.close()
