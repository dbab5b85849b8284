from __future__ import annotations

from typing import Any

import pytest

from tests.integration.client import User, expect, expect_problem, shell, to_time
from tests.integration.conftest import Registry
from tests.integration.stack import Stack
from tests.polling import wait_until

pytestmark = pytest.mark.integration

# 20 MB in a shell's variable, and some work.
HUNGRY = "x=$(head -c 20000000 /dev/zero | tr '\\0' a); i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"
PHASES = {"waitedSeconds", "pulledSeconds", "createdSeconds", "ranSeconds", "collectedSeconds"}


def start(user: User, script: str, **fields: Any) -> str:
    task_id: str = expect(user.api.post("/api/tasks/", shell(script, **fields)), 201)["id"]
    return task_id


def get_receipt(user: User, task_id: str) -> dict[str, Any]:
    (run,) = user.api.list_runs(task_id)
    return run


def was_adopted(stack: Stack, task_id: str) -> bool:
    lines = [line for container in stack.containers("executor") for line in container.logs().splitlines()]
    return any(b'"run_adopted"' in line and task_id.encode() in line for line in lines)


def test_a_receipt_says_where_a_run_was_what_it_used_and_where_its_time_went(stack: Stack, user: User):
    resources = {"cpus": 0.5, "memoryMb": 96, "pids": 40}
    task = user.api.wait_for(start(user, HUNGRY, resources=resources, timeoutSeconds=60), "completed")

    run = get_receipt(user, task["id"])

    assert run["limits"] == {**resources, "timeoutSeconds": 60, "stopGraceSeconds": 1}
    assert 20 <= run["maxMemoryMb"] <= 96
    assert 0.01 < run["cpuSeconds"] < 60
    assert run["engineId"] == stack.engine.info()["ID"]
    assert run["executorId"]
    assert run["imageDigest"].startswith("sha256:")
    assert (run["status"], run["reason"], run["exitCode"]) == ("completed", None, 0)
    timings = run["timings"]
    assert set(timings) == PHASES
    assert all(seconds >= 0 for seconds in timings.values())
    until_start = timings["waitedSeconds"] + timings["pulledSeconds"] + timings["createdSeconds"]
    assert until_start == pytest.approx(
        (to_time(run["startedAt"]) - to_time(task["scheduledAt"])).total_seconds(), abs=0.01
    )
    ran = (to_time(run["finishedAt"]) - to_time(run["startedAt"])).total_seconds()
    assert timings["ranSeconds"] == pytest.approx(ran, abs=0.002)


def test_a_run_of_milliseconds_has_a_receipt_too(user: User):
    run = get_receipt(user, user.api.run("true")["id"])

    assert run["maxMemoryMb"] is None or 0 < run["maxMemoryMb"] <= 256
    assert None not in run["timings"].values()


def test_a_run_that_was_killed_for_its_memory_had_used_all_of_it(user: User):
    run = get_receipt(user, user.api.run("tail", "/dev/zero", resources={"memoryMb": 24})["id"])

    assert (run["reason"], run["maxMemoryMb"]) == ("oom_killed", 24)


def test_the_time_of_a_pull_stands_in_the_receipt(user: User, registry: Registry):
    task = user.api.run("true", image=registry.push_test_image())

    timings = get_receipt(user, task["id"])["timings"]

    assert timings["pulledSeconds"] > 0
    assert timings["createdSeconds"] > 0


def test_a_receipt_survives_the_death_of_its_executor(stack: Stack, user: User):
    script = f"{HUNGRY}; echo fed; while [ ! -e /tmp/go ]; do sleep 0.05; done"
    task_id = start(user, script)
    wait_until(lambda: user.api.read_logs(task_id) != b"", what="it had used its memory")
    user.api.wait_for(task_id, "running")

    stack.kill("executor")
    wait_until(lambda: was_adopted(stack, task_id), what="the container was adopted", seconds=40, every=0.2)
    stack.task_container(task_id).exec_run(["touch", "/tmp/go"])  # noqa: S108  In the container.

    user.api.wait_for(task_id, "completed", seconds=60)
    run = get_receipt(user, task_id)
    assert run["maxMemoryMb"] >= 20
    assert run["cpuSeconds"] > 0.01
    assert run["imageDigest"].startswith("sha256:")
    assert None not in run["timings"].values()


def test_a_run_that_goes_on_has_the_part_of_its_receipt_that_is_known(user: User):
    task_id = start(user, "sleep 600")
    user.api.wait_for(task_id, "running")

    run = get_receipt(user, task_id)
    user.api.post(f"/api/tasks/{task_id}/cancel")

    assert (run["maxMemoryMb"], run["finishedAt"]) == (None, None)
    assert (run["timings"]["ranSeconds"], run["timings"]["collectedSeconds"]) == (None, None)
    assert run["timings"]["createdSeconds"] > 0


def test_nobody_reads_receipts_that_are_not_theirs(user: User, stranger: User):
    task_id = user.api.run("true")["id"]

    expect_problem(stranger.api.get(f"/api/tasks/{task_id}/runs"), 404, "not_found")
