from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.integration.client import User, expect, shell
from tests.integration.conftest import Registry
from tests.integration.slow_registry import SlowRegistry

pytestmark = pytest.mark.integration

MakeSlow = Callable[[float | None], SlowRegistry]


@pytest.fixture
def make_slow(registry: Registry) -> Iterator[MakeSlow]:
    made: list[SlowRegistry] = []

    def make(delay_seconds: float | None) -> SlowRegistry:
        made.append(SlowRegistry(registry.address, delay_seconds=delay_seconds))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_slow_pull_takes_nothing_of_the_runs_time(user: User, registry: Registry, make_slow: MakeSlow):
    image = make_slow(2.0).name(registry.push_test_image())

    task = user.api.run("sleep", "0.5", image=image, timeoutSeconds=2)

    assert task["status"] == "completed", task
    (run,) = user.api.list_runs(task["id"])
    assert run["timings"]["pulledSeconds"] >= 2
    assert run["timings"]["ranSeconds"] < 2


def test_a_pull_over_its_own_limit_fails_with_its_own_reason(user: User, registry: Registry, make_slow: MakeSlow):
    image = make_slow(None).name(registry.push_test_image())

    task = user.api.run("true", image=image, timeoutSeconds=1)

    assert (task["status"], task["reason"], task["startedAt"]) == ("failed", "image_pull_failed", None)
    assert "took longer than" in task["errorMsg"]
    assert image in task["errorMsg"]
    (run,) = user.api.list_runs(task["id"])
    assert run["timings"]["pulledSeconds"] > 1
    assert run["timings"]["ranSeconds"] is None


def test_at_the_time_limit_a_run_may_tidy_up_within_its_grace(user: User):
    script = "trap 'echo tidy; exit 3' TERM; while :; do sleep 0.05; done"

    created = expect(user.api.post("/api/tasks/", shell(script, timeoutSeconds=1, stopGraceSeconds=30)), 201)

    task = user.api.wait_for(created["id"], "failed")
    assert (task["reason"], task["exitCode"], task["result"]) == ("timeout", 3, "tidy\n")
    assert "stopGraceSeconds" not in task["errorMsg"]


def test_a_run_that_ignores_its_time_limit_is_killed_after_its_grace(user: User):
    script = "trap '' TERM; while :; do sleep 0.05; done"

    created = expect(user.api.post("/api/tasks/", shell(script, timeoutSeconds=1, stopGraceSeconds=1)), 201)

    task = user.api.wait_for(created["id"], "failed")
    assert (task["reason"], task["exitCode"]) == ("timeout", 137)
    assert "timeoutSeconds" in task["errorMsg"]
    assert "stopGraceSeconds of 1 s" in task["errorMsg"]
