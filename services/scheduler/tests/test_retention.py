"""Retention over a real database, and how it decides."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.retention import Retention, RetentionConfig, decide_batch_size
from services.scheduler.states import TaskStatus

DAY = timedelta(days=1)
AGES = {TaskStatus.COMPLETED: 7 * DAY, TaskStatus.FAILED: 30 * DAY}

_ADD = """
INSERT INTO scheduler.tasks (
    id, user_id, status, reason, image, timeout_seconds, stop_grace_seconds, cpus, memory_mb, pids, network,
    scheduled_at, due_at, created_at, finished_at, request_id)
SELECT gen_random_uuid(), %(user_id)s, %(status)s, CASE %(status)s WHEN 'failed' THEN 'timeout' END,
       'busybox', 60, 10, 1, 64, 64, 'none',
       now(), now(), now() - %(age)s - interval '1 hour', now() - %(age)s, 'r'
  FROM generate_series(1, %(count)s)
RETURNING id
"""


@pytest.fixture
def retention(pool):
    return Retention(pool=pool, config=RetentionConfig(ages=AGES))


@pytest.fixture
def add_finished(pool, user):
    def add(status: str, age: timedelta, count: int = 1) -> list[str]:
        parameters = {"user_id": user.user_id, "status": status, "age": age, "count": count}
        with pool.connection() as connection:
            return [str(row["id"]) for row in connection.execute(_ADD, parameters).fetchall()]

    return add


def is_there(user, task_id: str) -> bool:
    status: int = user("GET", f"/api/tasks/{task_id}").status_code
    return status == 200


@pytest.mark.component
def test_finished_tasks_go_when_they_are_older_than_their_status_allows(user, retention, add_finished):
    (old_completed,), (completed,) = add_finished("completed", 8 * DAY), add_finished("completed", 6 * DAY)
    (old_failed,), (failed,) = add_finished("failed", 31 * DAY), add_finished("failed", 8 * DAY)
    (cancelled,) = add_finished("cancelled", 1000 * DAY)
    waiting = user.create(scheduledAt=None)["id"]

    retention.run_once()

    assert [is_there(user, task_id) for task_id in (old_completed, old_failed)] == [False, False]
    kept = [completed, failed, cancelled, waiting]
    assert [is_there(user, task_id) for task_id in kept] == [True] * 4, "no age is set for cancelled ones"


@pytest.mark.component
def test_runs_and_output_go_with_their_task(pool, user, executor, queue):
    task, run_id = queue()
    executor.claim(run_id)
    executor.print(run_id, b"words")
    executor.finish(run_id)
    retention = Retention(pool=pool, config=RetentionConfig(ages={TaskStatus.COMPLETED: timedelta(0)}))

    retention.run_once()

    assert not is_there(user, task["id"])
    with pool.connection() as connection:
        for table in ("tasks", "runs", "run_logs"):
            assert connection.execute(f"SELECT count(*) AS n FROM scheduler.{table}").fetchone()["n"] == 0  # noqa: S608


@pytest.mark.component
def test_it_goes_on_in_batches_until_nothing_is_left_and_then_rests(pool, retention, add_finished):
    add_finished("completed", 8 * DAY, count=95)

    pauses = [retention.run_once() for _ in range(12)]

    with pool.connection() as connection:
        assert connection.execute("SELECT count(*) AS n FROM scheduler.tasks").fetchone()["n"] == 0
    assert pauses[0] < timedelta(seconds=10)
    assert pauses[-1] == timedelta(seconds=10)


@pytest.mark.component
def test_two_replicas_do_not_wait_for_each_other(pool, retention, add_finished):
    (held,), (free,) = add_finished("completed", 9 * DAY), add_finished("completed", 8 * DAY)

    with pool.connection() as connection, connection.transaction():
        connection.execute("SELECT FROM scheduler.tasks WHERE id = %s FOR UPDATE", (uuid.UUID(held),))
        retention.run_once()

    with pool.connection() as connection:
        left = [str(row["id"]) for row in connection.execute("SELECT id FROM scheduler.tasks")]
    assert left == [held]
    assert free not in left


@pytest.mark.component
def test_the_longest_finished_are_found_by_an_index(pool, add_finished):
    add_finished("completed", DAY, count=2000)
    with pool.connection() as connection:
        connection.execute("ANALYZE scheduler.tasks")
        plan = connection.execute(
            "EXPLAIN SELECT id FROM scheduler.tasks WHERE status = 'completed' "
            "AND finished_at < now() - interval '7 days' ORDER BY finished_at LIMIT 100"
        ).fetchall()

    assert "tasks_finished" in str(plan)


@given(
    st.integers(10, 1000),
    st.floats(0, 60).map(lambda seconds: timedelta(seconds=seconds)),
    st.booleans(),
)
def test_a_batch_shrinks_when_it_is_slow_and_grows_when_it_is_quick(size, took, is_full):
    config = RetentionConfig(ages={})

    following = decide_batch_size(size, took=took, is_full=is_full, config=config)

    assert config.least <= following <= config.most
    if took > 2 * config.batch_time:
        assert following <= size
    else:
        assert following >= size
