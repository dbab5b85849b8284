"""What a run's receipt says."""

from __future__ import annotations

from datetime import timedelta

import pytest

from libs.common.clock import format_time, utc_now

pytestmark = pytest.mark.component


def list_runs(user, task):
    return user("GET", f"/api/tasks/{task['id']}/runs").json["items"]


def test_a_receipt_says_where_it_ran_what_it_used_and_within_which_limits(user, executor, queue):
    task, run_id = queue(resources={"cpus": 0.5, "memoryMb": 64, "pids": 7}, timeoutSeconds=60, stopGraceSeconds=3)
    executor.claim(run_id)
    executor.start(run_id)
    executor.finish(run_id, maxMemoryMb=12, cpuSeconds=0.25)

    (run,) = list_runs(user, task)

    assert (run["executorId"], run["engineId"], run["imageDigest"]) == ("e1", "engine-1", "sha256:1")
    assert (run["maxMemoryMb"], run["cpuSeconds"]) == (12, 0.25)
    assert run["limits"] == {
        "cpus": 0.5,
        "memoryMb": 64,
        "pids": 7,
        "timeoutSeconds": 60,
        "stopGraceSeconds": 3,
    }


def test_the_phases_of_a_run_add_up(user, executor, queue, pool):
    task, run_id = queue()
    executor.claim(run_id)
    now = utc_now()
    with pool.connection() as connection:
        connection.execute(
            "UPDATE scheduler.runs SET due_at = %(now)s - interval '60 s', claimed_at = %(now)s - interval '50 s'",
            {"now": now},
        )
    executor.finish(
        run_id,
        startedAt=format_time(now - timedelta(seconds=30)),
        finishedAt=format_time(now - timedelta(seconds=5)),
        pulledSeconds=15.0,
    )

    timings = list_runs(user, task)[0]["timings"]

    assert timings.pop("collectedSeconds") == pytest.approx(5, abs=2)
    assert timings == {
        "waitedSeconds": 10.0,
        "pulledSeconds": 15.0,
        "createdSeconds": 5.0,
        "ranSeconds": 25.0,
    }


def test_what_a_run_never_got_to_has_no_time(user, executor, queue):
    task, run_id = queue()
    executor.claim(run_id)
    executor.finish(run_id, "failed", reason="image_pull_failed", exitCode=None, pulledSeconds=2.5)

    timings = list_runs(user, task)[0]["timings"]

    assert timings.pop("waitedSeconds") >= 0
    assert timings == {
        "pulledSeconds": 2.5,
        "createdSeconds": None,
        "ranSeconds": None,
        "collectedSeconds": None,
    }


def test_a_run_on_its_way_has_only_what_is_known(user, executor, queue):
    task, run_id = queue()
    (queued,) = list_runs(user, task)
    executor.claim(run_id)
    (claimed,) = list_runs(user, task)

    assert set(queued["timings"].values()) == {None}
    assert queued["maxMemoryMb"] is None
    assert claimed["timings"]["waitedSeconds"] is not None


def test_an_adopter_that_knows_less_takes_nothing_away(user, executor, queue):
    task, run_id = queue()
    executor.claim(run_id)
    executor.report(
        run_id, "started", startedAt=format_time(utc_now()), imageDigest="sha256:1", pulledSeconds=1.25
    )
    executor.reboot()
    (adopted,) = executor.sync()["adopt"]
    executor.held[run_id] = adopted["epoch"]

    executor.finish(run_id, cpuSeconds=2.0)

    (run,) = list_runs(user, task)
    assert run["timings"]["pulledSeconds"] == 1.25
    assert (run["imageDigest"], run["cpuSeconds"], run["maxMemoryMb"]) == ("sha256:1", 2.0, None)


def test_each_attempt_waits_from_its_own_due_time(user, executor, queue, dispatcher, publisher, pool):
    task, run_id = queue(retry={"maxAttempts": 2, "backoffSeconds": 0})
    with pool.connection() as connection:
        connection.execute("UPDATE scheduler.runs SET due_at = due_at - interval '1 hour'")
    executor.claim(run_id)
    executor.finish(run_id, "failed", reason="exit_nonzero", exitCode=1)
    dispatcher.run_once()
    executor.claim(publisher.sent[-1])

    second, first = list_runs(user, task)

    assert second["timings"]["waitedSeconds"] < 3600 <= first["timings"]["waitedSeconds"]


def test_a_run_that_is_cancelled_before_its_claim_has_waited_till_then(user, queue):
    task, _ = queue()
    user("POST", f"/api/tasks/{task['id']}/cancel")

    (run,) = list_runs(user, task)

    assert run["status"] == "cancelled"
    assert run["timings"]["waitedSeconds"] is not None
    assert run["timings"]["collectedSeconds"] is None


def test_a_cancel_is_hinted_to_the_executor_that_holds_the_run(user, executor, queue, waker):
    task, run_id = queue()
    user("POST", f"/api/tasks/{task['id']}/cancel")
    assert waker.stops == []
    task, run_id = queue()
    executor.claim(run_id)

    user("POST", f"/api/tasks/{task['id']}/cancel")

    assert waker.stops == ["e1"]


def test_a_deletion_is_hinted_too(user, executor, queue, waker):
    task, run_id = queue()
    executor.claim(run_id)

    user("DELETE", f"/api/tasks/{task['id']}")

    assert waker.stops == ["e1"]
