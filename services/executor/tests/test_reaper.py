from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from services.executor import runtime as rt
from services.executor.reaper import Reaper
from services.executor.tests.fake_runtime import FakeContainer, FakeEngine, FakeRuntime


class FakeQuestions:
    """Answers with the next look, as the sync does."""

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.live: set[tuple[str, int]] = set()
        self._asked: set[tuple[str, int]] = set()

    def holds(self, run_id: str) -> bool:
        return run_id in self.held

    def ask_live(self, key: tuple[str, int]) -> bool | None:
        if key not in self._asked:
            self._asked.add(key)
            return None
        self._asked.discard(key)
        return key in self.live


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def questions() -> FakeQuestions:
    return FakeQuestions()


@pytest.fixture
def reaper(engine: FakeEngine, questions: FakeQuestions) -> Reaper:
    return Reaper(runtime=FakeRuntime(engine), sync=questions, instance="test")


def leave(engine: FakeEngine, *, age_seconds: int = 61, status: str = "exited") -> FakeContainer:
    labels = {rt.LABEL_INSTANCE: "test", rt.LABEL_RUN: "run-1", rt.LABEL_EPOCH: "1"}
    return engine.add(
        "task",
        options={"Image": "busybox", "Labels": labels},
        status=status,
        created_at=datetime.now(UTC) - timedelta(seconds=age_seconds),
    )


def look(reaper: Reaper, times: int = 6) -> int:
    return sum(reaper.run_once() for _ in range(times))


@pytest.mark.parametrize("status", ["exited", "created", "dead"])
def test_a_leftover_that_no_live_run_owns_is_removed(reaper, engine, status):
    leave(engine, status=status)

    assert look(reaper) == 1
    assert engine.containers == {}


def test_one_answer_is_not_enough(reaper, engine):
    leave(engine)

    assert look(reaper, times=2) == 0
    assert engine.containers


def test_the_container_of_a_live_run_stays_for_who_takes_over(reaper, engine, questions):
    leave(engine)
    questions.live.add(("run-1", 1))

    assert look(reaper) == 0


def test_a_held_run_keeps_its_container(reaper, engine, questions):
    leave(engine)
    questions.held.add("run-1")

    assert look(reaper) == 0


def test_a_running_container_is_never_touched(reaper, engine):
    leave(engine, status="running")

    assert look(reaper) == 0


def test_a_young_container_may_still_be_somebodys(reaper, engine):
    leave(engine, age_seconds=59)

    assert look(reaper) == 0
