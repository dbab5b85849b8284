"""The engine monitor: when the guard is set, set again, and what a guard that fails stops."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from services.executor import runtime as rt
from services.executor.engine import GUARD_AGAIN_SECONDS, EngineMonitor
from services.executor.network_guard import GuardSettings, NetworkGuard
from services.executor.tests.fake_runtime import FakeEngine, FakeRuntime

GUARD = NetworkGuard(
    GuardSettings(instance="test", executor_id="executor-1", network="test-tasks", image="app", allow=(), deny=())
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make_monitor(engine: FakeEngine, clock: Clock) -> EngineMonitor:
    return EngineMonitor(runtime=FakeRuntime(engine), guard=GUARD, on_change=lambda: None, monotonic=clock)


def test_the_engines_time_is_told_between_two_looks_whatever_this_machines_clock_says():
    engine, clock = FakeEngine(), Clock()
    engine.ahead = timedelta(hours=1)
    monitor = make_monitor(engine, clock)
    monitor.run_once()

    clock.now = 10.0

    ahead = monitor.now() - datetime.now(UTC) - timedelta(seconds=10)
    assert timedelta(minutes=59) < ahead < timedelta(minutes=61)


def test_the_guard_is_set_once_while_the_engine_stays():
    engine, clock = FakeEngine(), Clock()
    monitor = make_monitor(engine, clock)

    results = [monitor.run_once() for _ in range(3)]

    assert results == [True] * 3
    assert engine.calls.count("run_helper") == 1


def test_the_guard_is_set_again_every_few_minutes():
    engine, clock = FakeEngine(), Clock()
    monitor = make_monitor(engine, clock)

    for half in range(7):
        clock.now = half * (GUARD_AGAIN_SECONDS / 2 + 1)
        monitor.run_once()

    assert engine.calls.count("run_helper") == 4


def test_a_guard_that_fails_later_stops_new_runs():
    engine, clock = FakeEngine(), Clock()
    monitor = make_monitor(engine, clock)
    monitor.run_once()
    engine.before["run_helper"] = rt.EngineRefused("no room")
    clock.now = GUARD_AGAIN_SECONDS + 1

    assert not monitor.run_once()
    assert not monitor.ready
    assert monitor.run_once()


def test_the_guard_is_set_again_when_the_engine_was_away():
    engine, clock = FakeEngine(), Clock()
    monitor = make_monitor(engine, clock)
    monitor.run_once()

    monitor.lost(rt.EngineUnavailable("gone"))

    assert not monitor.ready
    assert monitor.run_once()
    assert engine.calls.count("run_helper") == 2
