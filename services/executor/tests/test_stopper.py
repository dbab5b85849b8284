from __future__ import annotations

import time
from datetime import timedelta

import pytest

from services.executor import runtime as rt
from services.executor import stopper as stopper_module
from services.executor.stopper import KILL_AGAIN_SECONDS, Stopper, decide_step
from services.executor.tests.builders import make_run, make_spec
from services.executor.tests.fake_runtime import FakeContainer, FakeEngine, FakeRuntime, Program

QUIET = {"stop_asked": None, "deadline": 100.0, "grace_seconds": 10.0, "terminated_at": None, "killed_at": None}


@pytest.mark.parametrize(
    ("changes", "at", "signal", "reason"),
    [
        ({}, 100.0, "SIGTERM", "timeout"),
        ({"stop_asked": "cancelled"}, 0.0, "SIGTERM", "cancelled"),
        ({"terminated_at": 100.0, "stopped_for": "timeout"}, 110.0, "SIGKILL", "timeout"),
        (
            {"terminated_at": 50.0, "stopped_for": "cancelled", "stop_asked": "cancelled"},
            60.0,
            "SIGKILL",
            "cancelled",
        ),
        (
            {"terminated_at": 50.0, "killed_at": 60.0, "stopped_for": "timeout"},
            60.0 + KILL_AGAIN_SECONDS,
            "SIGKILL",
            "timeout",
        ),
    ],
)
def test_the_next_signal(changes, at, signal, reason):
    step = decide_step(**(QUIET | {"stopped_for": None} | changes))

    assert (step.at, step.signal, step.reason) == (at, signal, reason)


def begin(engine: FakeEngine, program: Program) -> FakeContainer:
    engine.programs["x",] = program
    container = engine.add("task", options={"Image": "busybox", "Cmd": ["x"], "Labels": {}})
    engine.begin(container)
    return container


def watch(stopper: Stopper, container: FakeContainer, *, age: timedelta = timedelta(0), **changes):
    run = make_run(make_spec(**changes))
    stopper.watch(run, container_id=container.container_id, ran_for=age)
    return run


def test_a_run_within_its_limit_gets_no_signal():
    engine = FakeEngine()
    stopper = Stopper(open_runtime=lambda: FakeRuntime(engine), spawn=lambda send: send())
    container = begin(engine, Program(runs_on=True))
    watch(stopper, container, timeoutSeconds=30)

    pause = stopper.run_once()

    assert container.signals == []
    assert 29 < pause <= 30


def test_the_limit_counts_from_the_start_also_for_an_adopter():
    engine = FakeEngine()
    stopper = Stopper(open_runtime=lambda: FakeRuntime(engine), spawn=lambda send: send())
    container = begin(engine, Program(runs_on=True))
    run = watch(stopper, container, timeoutSeconds=30, age=timedelta(seconds=31))

    stopper.run_once()

    assert container.signals == ["SIGTERM"]
    assert run.stopped_for == "timeout"


def test_sigkill_follows_when_the_grace_is_over():
    engine = FakeEngine()
    stopper = Stopper(open_runtime=lambda: FakeRuntime(engine), spawn=lambda send: send())
    container = begin(engine, Program(runs_on=True, ignores_sigterm=True))
    run = watch(stopper, container, stopGraceSeconds=0)
    run.ask_stop("cancelled")

    stopper.run_once()
    stopper.run_once()

    assert container.signals == ["SIGTERM", "SIGKILL"]
    assert run.stopped_for == "cancelled"


def test_a_run_that_ended_by_itself_was_not_stopped():
    engine = FakeEngine()
    stopper = Stopper(open_runtime=lambda: FakeRuntime(engine), spawn=lambda send: send())
    container = begin(engine, Program())
    run = watch(stopper, container, timeoutSeconds=1, age=timedelta(seconds=5))

    stopper.run_once()

    assert run.stopped_for is None


def test_an_engine_that_is_away_gets_the_signal_later():
    engine = FakeEngine()
    stopper = Stopper(open_runtime=lambda: FakeRuntime(engine), spawn=lambda send: send())
    container = begin(engine, Program(runs_on=True))
    run = watch(stopper, container)
    run.ask_stop("cancelled")
    engine.before["kill"] = rt.EngineUnavailable("down")

    pause = stopper.run_once()
    assert container.signals == []
    time.sleep(pause)
    stopper.run_once()

    assert container.signals == ["SIGTERM"]


def test_a_signal_whose_answer_was_lost_is_why_the_run_ends():
    engine = FakeEngine()
    stopper = Stopper(open_runtime=lambda: FakeRuntime(engine), spawn=lambda send: send())
    container = begin(engine, Program(runs_on=True))
    run = watch(stopper, container, timeoutSeconds=30, age=timedelta(seconds=31))
    engine.after["kill"] = rt.EngineUnavailable("reset")

    stopper.run_once()

    assert container.signals == ["SIGTERM"]
    assert run.stopped_for == "timeout"


def test_an_engine_that_never_says_that_it_sent_sigterm_is_told_to_kill(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stopper_module, "RETRY_SECONDS", 0.0)
    engine = FakeEngine()
    stopper = Stopper(open_runtime=lambda: FakeRuntime(engine), spawn=lambda send: send())
    container = begin(engine, Program(runs_on=True, ignores_sigterm=True))
    watch(stopper, container, stopGraceSeconds=0).ask_stop("cancelled")

    for _ in range(2):
        engine.after["kill"] = rt.EngineUnavailable("reset")
        stopper.run_once()

    assert container.signals == ["SIGTERM", "SIGTERM", "SIGKILL"]


def test_a_run_that_is_no_longer_watched_gets_no_signal():
    engine = FakeEngine()
    stopper = Stopper(open_runtime=lambda: FakeRuntime(engine), spawn=lambda send: send())
    container = begin(engine, Program(runs_on=True))
    run = watch(stopper, container)
    run.ask_stop("cancelled")

    stopper.unwatch(run)
    stopper.run_once()

    assert container.signals == []


def test_a_released_run_gets_no_signal():
    engine = FakeEngine()
    stopper = Stopper(open_runtime=lambda: FakeRuntime(engine), spawn=lambda send: send())
    container = begin(engine, Program(runs_on=True))
    run = watch(stopper, container)
    run.ask_stop("cancelled")
    run.release()

    stopper.run_once()

    assert container.signals == []
