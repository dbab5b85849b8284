"""Leases over a real database: renewal, release, takeover."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest

from services.scheduler import run_store
from services.scheduler.sync import SyncConfig
from services.scheduler.tests.executors import FakeExecutor

pytestmark = pytest.mark.component


def expire_leases(pool):
    with pool.connection() as connection:
        connection.execute("UPDATE scheduler.leases SET expires_at = now() - interval '1 second'")


def note_http_since(pool, ago):
    """The scheduler's HTTP side has been at work for that long."""
    with pool.connection() as connection:
        run_store.beat(connection, "http")
        connection.execute("UPDATE scheduler.parts SET since = now() - %s", (ago,))


def query(pool, text, *parameters):
    with pool.connection() as connection:
        return connection.execute(text, parameters).fetchall()


def test_renewals_keep_a_lease_and_what_is_not_ones_own_is_released(executor, queue, pool):
    _, run_id = queue()
    executor.claim(run_id)
    expire_leases(pool)
    stranger = str(uuid.uuid4())
    executor.held[stranger] = 1

    answer = executor.sync()

    assert answer["released"] == [{"runId": stranger, "epoch": 1}]
    assert query(pool, "SELECT expires_at > now() + interval '25 seconds' AS fresh FROM scheduler.leases") == [
        {"fresh": True}
    ]


def test_an_executor_that_came_back_adopts_what_its_earlier_boot_held_at_once(user, executor, queue):
    task, run_id = queue()
    executor.claim(run_id)
    executor.start(run_id)
    executor.reboot()

    answer = executor.sync()
    again = executor.sync()

    (adopted,) = answer["adopt"]
    assert (adopted["runId"], adopted["epoch"], adopted["wasRunning"]) == (run_id, 2, True)
    assert adopted["task"]["taskId"] == task["id"]
    assert again["adopt"] == answer["adopt"], "the first answer may have been lost"
    executor.held[run_id] = 2
    assert executor.sync()["adopt"] == []
    executor.finish(run_id, result=b"kept")
    assert user.get(task["id"])["result"] == "kept"


def test_an_adopter_is_told_how_much_output_is_kept_already(executor, queue):
    _, run_id = queue()
    _, silent_run_id = queue()
    executor.claim(run_id, silent_run_id)
    executor.print(run_id, b"out", seq=0)
    executor.print(run_id, b"error", stream="stderr", seq=1)
    executor.reboot()

    adopted = {entry["runId"]: entry["logs"] for entry in executor.sync()["adopt"]}

    assert adopted == {
        run_id: {"nextSeq": 2, "stdoutBytes": 3, "stderrBytes": 5},
        silent_run_id: {"nextSeq": 0, "stdoutBytes": 0, "stderrBytes": 0},
    }


def test_an_earlier_boot_is_refused_for_good(executor, queue):
    _, run_id = queue()
    executor.claim(run_id)
    old_boot = executor.boot
    executor.reboot()
    executor.sync()

    executor.boot = old_boot
    answer = executor.post()

    assert answer.status_code == 409
    assert answer.json["code"] == "executor_replaced"


def test_an_expired_lease_is_taken_over_on_the_same_engine(settled_client, user, executor, queue, pool):
    task, run_id = queue()
    executor.claim(run_id)
    executor.start(run_id)
    colleague = FakeExecutor(settled_client, name="e2", engine=executor.engine)
    stranger = FakeExecutor(settled_client, name="e3", engine="engine-2")

    assert colleague.sync()["adopt"] == []
    expire_leases(pool)
    assert stranger.sync()["adopt"] == []
    (adopted,) = colleague.sync()["adopt"]
    colleague.held[run_id] = adopted["epoch"]

    assert executor.sync()["released"] == [{"runId": run_id, "epoch": 1}]
    late = executor.report(run_id, "finished", epoch=1, outcome="failed", reason="timeout")
    assert late["reports"][0]["accepted"] is False
    colleague.finish(run_id)
    assert user.get(task["id"])["status"] == "completed"


@pytest.mark.parametrize(
    ("settle", "http_since"),
    [(timedelta(days=365), timedelta(days=400)), (timedelta(seconds=1), timedelta(0))],
    ids=["the database has just started", "the scheduler has just started"],
)
def test_nobody_takes_over_right_after_a_restart(make_client, executor, queue, pool, settle, http_since):
    _, run_id = queue()
    executor.claim(run_id)
    colleague = FakeExecutor(make_client(SyncConfig(settle=settle)), name="e2", engine=executor.engine)
    note_http_since(pool, http_since)
    expire_leases(pool)

    assert colleague.sync()["adopt"] == []
    assert executor.sync()["released"] == []


def test_nobody_takes_over_before_the_scheduler_has_noted_that_it_is_back(settled_client, executor, queue, pool):
    _, run_id = queue()
    executor.claim(run_id)
    colleague = FakeExecutor(settled_client, name="e2", engine=executor.engine)
    expire_leases(pool)
    with pool.connection() as connection:
        connection.execute("UPDATE scheduler.parts SET seen_at = now() - interval '21 seconds'")

    assert colleague.sync()["adopt"] == []
    assert executor.sync()["released"] == []
