"""What is kept and for how long: retention, and the guard of the disk."""

from __future__ import annotations

import json
import uuid

import pytest

from tests.integration.client import User
from tests.integration.stack import Stack
from tests.integration.test_observability import READ
from tests.polling import wait_until

pytestmark = pytest.mark.integration

ADD_OLD = """
INSERT INTO scheduler.tasks (
    id, user_id, status, image, timeout_seconds, stop_grace_seconds, cpus, memory_mb, pids, network,
    scheduled_at, due_at, created_at, finished_at, request_id)
VALUES ('{id}', '{user_id}', 'completed', 'busybox', 60, 10, 1, 64, 64, 'none',
        now(), now(), now() - interval '9 days', now() - interval '{age}', 'kept')
"""


def add_finished(stack: Stack, user: User, age: str) -> str:
    """A task that ended so long ago: nobody waits for a week here."""
    task_id = str(uuid.uuid4())
    query = ADD_OLD.format(id=task_id, user_id=user.id, age=age)
    (postgres,) = stack.containers("postgres")
    result = postgres.exec_run(["psql", "-U", "taskrunner", "-d", "taskrunner", "-c", query])
    assert result.exit_code == 0, result.output
    return task_id


def read_inside(stack: Stack, url: str) -> str:
    text: str = stack.run_inside("gateway", READ.format(url=url))
    return text


def test_a_completed_task_is_gone_after_a_week_and_not_before(stack: Stack, user: User):
    younger, older = add_finished(stack, user, "6 days"), add_finished(stack, user, "8 days")

    wait_until(lambda: user.api.get(f"/api/tasks/{older}").status_code == 404, what="it was removed", seconds=30)

    assert user.api.get_task(younger)["status"] == "completed"
    metrics = read_inside(stack, "http://scheduler-loops:8004/metrics")
    assert 'taskrunner_retention_removed_total{status="completed"}' in metrics
    assert 'taskrunner_retention_lag_seconds{status="failed"} 0.0' in metrics


def test_the_scheduler_sees_how_much_room_the_database_has(stack: Stack):
    readiness = json.loads(read_inside(stack, "http://scheduler:8002/readyz"))

    storage = readiness["checks"]["storage"]
    assert (storage["status"], storage["minFreeMb"]) == ("up", 1024)
    assert storage["freeMb"] > 1024
    metrics = read_inside(stack, "http://scheduler:8002/metrics")
    assert "taskrunner_storage_refuses 0.0" in metrics
    assert "taskrunner_storage_free_bytes" in metrics


def test_the_scheduler_sees_the_disk_but_no_file_of_the_database(stack: Stack):
    seen = stack.run_inside(
        "scheduler",
        "import json, os\ntry:\n    print(json.dumps(os.listdir('/storage')))\n"
        "except PermissionError:\n    print('null')",
    )

    assert seen is None
