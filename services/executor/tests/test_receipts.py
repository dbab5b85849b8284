"""What a run's execution notes for its receipt, and what it does at once when a stop is asked."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import timedelta

import pytest

from services.executor import execution
from services.executor import runtime as rt
from services.executor.meter import UNKNOWN, Meter, Usage
from services.executor.stopper import Stopper
from services.executor.tests.builders import make_run, make_settings, make_spec
from services.executor.tests.fake_runtime import FakeContainer, FakeRuntime, Program
from services.executor.tests.test_execution import Bench
from tests.polling import wait_until


class FixedMeter(Meter):
    """Says the same of every container that it was told to watch."""

    def __init__(self, usage: Usage) -> None:
        super().__init__(None)
        self.watched: list[str] = []
        self._usage = usage

    def watch(self, container_id: str) -> None:
        self.watched.append(container_id)

    def take(self, container_id: str) -> Usage:
        assert container_id in self.watched
        return self._usage


def make_bench(usage: Usage = UNKNOWN) -> Bench:
    bench = Bench()
    bench.tools = replace(bench.tools, meter=FixedMeter(usage))
    return bench


def pull_takes(bench: Bench, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """As if that much time passed during each pull."""
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def pass_time() -> None:
        clock[0] += seconds

    bench.engine.before["pull"] = pass_time


def test_a_report_says_what_was_used():
    bench = make_bench(Usage(max_memory_mb=7, cpu_seconds=0.5))

    bench.execute(make_run())

    assert bench.report.usage == Usage(max_memory_mb=7, cpu_seconds=0.5)


def test_a_container_is_watched_before_it_is_started():
    bench = make_bench()
    seen: list[int] = []
    bench.engine.before["start"] = lambda: seen.append(len(bench.tools.meter.watched))  # type: ignore[attr-defined]

    bench.execute(make_run())

    assert seen == [1]


def test_an_adopter_reports_what_it_saw_and_not_what_it_cannot_know():
    bench = make_bench(Usage(max_memory_mb=7, cpu_seconds=0.5))
    run = make_run(epoch=2)
    bench.engine.programs["x",] = Program(runs_on=True)
    container = bench.leave(run, "x", status="running")
    bench.stops.watch = lambda *_, **__: bench.engine.finish(container, 0)  # type: ignore[method-assign]

    bench.adopt(run)

    assert bench.report.usage.max_memory_mb == 7
    assert bench.report.pulled_seconds is None


def test_an_adopter_of_what_has_exited_knows_nothing_of_its_use():
    bench = make_bench(Usage(max_memory_mb=7, cpu_seconds=0.5))
    run = make_run(epoch=2)
    bench.leave(run, status="exited")

    bench.adopt(run)

    assert bench.report.usage == UNKNOWN


def test_a_run_that_was_killed_for_its_memory_had_used_all_of_it():
    bench = make_bench(Usage(max_memory_mb=7, cpu_seconds=0.5))
    bench.engine.programs["true",] = Program(exit_code=137, oom_killed=True)

    bench.execute(make_run(make_spec(memoryMb=64)))

    assert bench.report.usage == Usage(max_memory_mb=64, cpu_seconds=0.5)


def test_an_image_that_is_there_takes_no_time():
    bench = make_bench()

    bench.execute(make_run())

    assert bench.report.pulled_seconds == 0


def test_the_time_of_a_pull_is_reported_with_the_start_and_with_the_end(monkeypatch):
    bench = make_bench()
    pull_takes(bench, monkeypatch, 12.5)
    bench.engine.registry["missing"] = None

    bench.execute(make_run(make_spec(image="missing")))

    assert bench.reporter.started[0].pulled_seconds == 12.5
    assert bench.report.pulled_seconds == 12.5


def test_the_time_of_a_pull_that_failed_is_reported(monkeypatch):
    bench = make_bench()
    pull_takes(bench, monkeypatch, 3.0)
    bench.engine.registry["missing"] = rt.PullFailed("it took longer than 3 s")

    bench.execute(make_run(make_spec(image="missing")))

    assert bench.report.outcome.reason == "image_pull_failed"
    assert bench.report.pulled_seconds == 3.0


def test_a_stop_ends_the_pause_before_another_try_to_create(monkeypatch):
    bench = make_bench()
    run = make_run()
    monkeypatch.setattr(execution, "FRUITLESS_PAUSE_SECONDS", 600.0)

    def fail() -> None:
        bench.engine.before["create"] = fail
        raise rt.EngineFault("no space left on device")

    bench.engine.before["create"] = fail
    thread = threading.Thread(target=bench.execute, args=(run,), daemon=True)
    thread.start()
    wait_until(lambda: bench.engine.calls.count("create") >= 2)
    run.ask_stop("cancelled")
    thread.join(5)

    assert bench.report.outcome.status == "cancelled"


def test_a_stop_ends_the_wait_for_a_leftover(monkeypatch):
    bench = make_bench()
    run = make_run()
    monkeypatch.setattr(execution, "LEFTOVER_PAUSE_SECONDS", 600.0)
    labels = {rt.LABEL_INSTANCE: make_settings().instance, rt.LABEL_RUN: "another"}
    other = {"Image": "busybox", "Labels": labels}
    bench.engine.add(str(run.spec.task_id), options=other, status="running")
    thread = threading.Thread(target=bench.execute, args=(run,), daemon=True)
    thread.start()
    wait_until(lambda: "find" in bench.engine.calls)

    run.ask_stop("cancelled")
    thread.join(5)

    assert bench.report.outcome.status == "cancelled"


def test_only_a_run_that_ignores_its_sigterm_counts_as_killed():
    def stop(*, ignores_sigterm: bool) -> tuple[bool, FakeContainer]:
        bench = make_bench()
        stopper = Stopper(open_runtime=lambda: FakeRuntime(bench.engine), spawn=lambda send: send())
        bench.engine.programs["x",] = Program(runs_on=True, ignores_sigterm=ignores_sigterm)
        container = bench.engine.add("task", options={"Image": "busybox", "Cmd": ["x"], "Labels": {}})
        bench.engine.begin(container)
        run = make_run(make_spec(stopGraceSeconds=0))
        run.ask_stop("cancelled")
        stopper.watch(run, container_id=container.container_id, ran_for=timedelta(0))
        stopper.run_once()
        stopper.run_once()
        return run.was_killed, container

    killed, stubborn = stop(ignores_sigterm=True)
    let_go, obedient = stop(ignores_sigterm=False)

    assert (killed, stubborn.exit_code) == (True, 137)
    assert (let_go, obedient.exit_code) == (False, 143)
