"""queueTtlSeconds: a task that no executor has taken in time fails, and one that is being taken doesn't."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from libs.common.clock import format_time, utc_now
from services.scheduler.sweep import SweepConfig, Sweeper

pytestmark = pytest.mark.component


@pytest.fixture
def sweeper(pool, dispatcher, users, waker):
    return Sweeper(
        pool=pool, dispatcher=dispatcher, users=users, config=SweepConfig(batch_size=2), wake_dispatch=waker.wake
    )


@pytest.fixture
def pass_time(pool):
    def pass_time(seconds: int = 61) -> None:
        with pool.connection() as connection:
            connection.execute(
                "UPDATE scheduler.tasks SET expires_at = expires_at - %s * interval '1 second'"
                " WHERE finished_at IS NULL",
                (seconds,),
            )

    return pass_time


def test_tasks_that_nobody_took_in_time_fail_with_a_reason(user, executor, dispatcher, sweeper, pass_time):
    tasks = [user.create(queueTtlSeconds=60) for _ in range(5)]
    patient = user.create()
    later = user.create(queueTtlSeconds=60, scheduledAt=format_time(utc_now() + timedelta(seconds=30)))
    dispatcher.run_once()
    assert sweeper.expire_tasks() == 0, "it isn't time yet"

    pass_time()
    assert sweeper.expire_tasks() == 5

    ended = [user.get(task["id"]) for task in tasks]
    assert {(task["status"], task["reason"], task["startedAt"]) for task in ended} == {
        ("failed", "queue_ttl_expired", None)
    }
    assert all("queueTtlSeconds" in task["errorMsg"] and task["finishedAt"] for task in ended)
    assert user.get(patient["id"])["status"] == "queued"
    assert user.get(later["id"])["status"] == "pending", "the time counts from when it is due"


def test_a_message_of_an_expired_task_is_refused(user, executor, queue, sweeper, pass_time):
    _, run_id = queue(queueTtlSeconds=60)
    pass_time()
    sweeper.expire_tasks()

    (claim,) = executor.claim(run_id)

    assert (claim["granted"], claim["reason"]) == (False, "cancelled")


def test_what_has_expired_is_not_dispatched_even_before_it_was_swept(user, executor, dispatcher, pass_time):
    user.create(queueTtlSeconds=60)
    pass_time()

    assert dispatcher.run_once().dispatched == 0


def test_what_an_executor_has_taken_is_out_of_the_queue(user, executor, queue, sweeper, pass_time):
    task, run_id = queue(queueTtlSeconds=60)
    executor.claim(run_id)
    pass_time()

    assert sweeper.expire_tasks() == 0
    executor.start(run_id)
    executor.finish(run_id)

    assert user.get(task["id"])["status"] == "completed"


def test_a_task_that_has_started_once_is_not_given_up_for_its_time_in_the_queue(
    user, executor, queue, dispatcher, sweeper, pass_time
):
    task, run_id = queue(queueTtlSeconds=60)
    executor.claim(run_id)
    executor.start(run_id)
    executor.finish(run_id, "lost")
    pass_time()

    assert sweeper.expire_tasks() == 0
    assert user.get(task["id"])["status"] == "pending"


def test_a_lost_run_that_never_started_does_not_prolong_the_time(user, executor, queue, sweeper, pass_time):
    task, run_id = queue(queueTtlSeconds=60)
    executor.claim(run_id)
    executor.finish(run_id, "lost")
    pass_time()

    assert sweeper.expire_tasks() == 1
    assert user.get(task["id"])["reason"] == "queue_ttl_expired"


def test_a_claim_at_the_same_moment_either_has_the_run_or_is_refused(
    user, executor, queue, sweeper, pass_time, pool
):
    for _ in range(10):
        task, run_id = queue(queueTtlSeconds=60)
        pass_time()
        sweep = threading.Thread(target=sweeper.expire_tasks)

        sweep.start()
        (claim,) = executor.claim(run_id)
        sweep.join()

        status = user.get(task["id"])["status"]
        assert (claim["granted"], status) in [(True, "queued"), (False, "failed")]
        if claim["granted"]:
            executor.finish(run_id)


@pytest.mark.parametrize("value", [0, -1, 1.5, "60", 31_536_001])
def test_a_wrong_time_is_refused(user, value):
    answer = user("POST", "/api/tasks/", json={"image": "busybox", "queueTtlSeconds": value})

    assert answer.status_code == 422
    assert "queueTtlSeconds" in answer.json["errors"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pool", ""),
        ("pool", "GPU"),
        ("pool", "a" * 51),
        ("pool", "a/b"),
        ("pool", "gpu\n"),
        ("pool", None),
        ("concurrency", {"key": "k"}),
        ("concurrency", {"key": "", "limit": 1}),
        ("concurrency", {"key": "k", "limit": 0}),
        ("concurrency", {"key": "k", "limit": 1001}),
        ("concurrency", {"key": "k" * 101, "limit": 1}),
        ("concurrency", {"key": "k", "limit": 1, "more": 1}),
        ("concurrency", "k"),
    ],
)
def test_a_wrong_pool_or_group_is_refused(user, field, value):
    answer = user("POST", "/api/tasks/", json={"image": "busybox", field: value})

    assert answer.status_code == 422
    assert field in answer.json["errors"]
