"""Queries stay lookups whatever the planner believes."""

from __future__ import annotations

from datetime import timedelta

import pytest

from libs.common.postgres import load_queries

pytestmark = pytest.mark.component

QUERIES = load_queries("services.scheduler")

RUNS = 5000

# The runs, and what as many leases leave behind when they have gone, before any vacuum.
FILL = f"""
INSERT INTO scheduler.tasks (
    id, user_id, image, command, timeout_seconds, stop_grace_seconds, cpus, memory_mb, pids, network,
    scheduled_at, due_at, request_id, status, finished_at)
SELECT gen_random_uuid(), gen_random_uuid(), 'a', 'b', 1, 1, 1, 16, 16, 'none',
       now(), now(), 'r', 'completed', now()
  FROM generate_series(1, {RUNS});
INSERT INTO scheduler.runs (id, task_id, number, status, request_id, finished_at, next_publish_at)
SELECT gen_random_uuid(), id, 1, 'completed', 'r', now(), now() FROM scheduler.tasks;
INSERT INTO scheduler.leases (run_id, executor_id, boot_id, engine_id, epoch, expires_at)
SELECT id, 'e', 'b', 'g', 1, now() FROM scheduler.runs;
ANALYZE scheduler.tasks;
ANALYZE scheduler.runs;
ANALYZE scheduler.leases;
DELETE FROM scheduler.leases
"""  # noqa: S608  A number of our own.

PARAMETERS = {
    "engine_id": "g",
    "executor_id": "e",
    "boot_id": "b",
    "lease": timedelta(seconds=30),
    "settle": timedelta(seconds=45),
    "gap": timedelta(seconds=20),
    "silence": timedelta(seconds=90),
    "publish_within": timedelta(seconds=13),
    "lost_within": timedelta(seconds=5),
    "empty_pools": [],
    "limit": 100,
}


@pytest.mark.parametrize(
    "name", ["list_leases_of_engine", "take_over_leases", "lock_lost_runs", "take_runs_to_publish"]
)
def test_what_leases_left_behind_makes_no_query_read_all_runs(pool, name):
    with pool.connection() as connection:
        for statement in FILL.split(";"):
            connection.execute(statement)
        rows = connection.execute(b"EXPLAIN " + QUERIES[name], PARAMETERS).fetchall()

    plan = "\n".join(row["QUERY PLAN"] for row in rows)
    assert "Seq Scan on runs" not in plan, plan
    assert "Seq Scan on tasks" not in plan, plan
    assert "Merge Join" not in plan, plan
