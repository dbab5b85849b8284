"""What the schema itself refuses, whatever the code does."""

from __future__ import annotations

import psycopg
import pytest

pytestmark = pytest.mark.component


def query(pool, text, *parameters):
    with pool.connection() as connection:
        return connection.execute(text, parameters).fetchall()


def test_a_second_live_run_of_a_task_is_refused_by_the_schema(queue, pool):
    task, _ = queue()

    with pytest.raises(psycopg.errors.UniqueViolation, match="runs_one_live"):
        query(
            pool,
            "INSERT INTO scheduler.runs (id, task_id, number, next_publish_at, request_id)"
            " VALUES (gen_random_uuid(), %s, 2, now(), '')",
            task["id"],
        )


@pytest.mark.parametrize("table", ["tasks", "runs"])
def test_a_terminal_row_refuses_any_change(executor, queue, pool, table):
    _, run_id = queue()
    executor.claim(run_id)
    executor.finish(run_id)

    with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="never changes"):
        query(pool, f"UPDATE scheduler.{table} SET error_msg = 'changed'")  # noqa: S608


@pytest.mark.parametrize(
    "change",
    [
        "tasks SET status = 'completed'",
        "tasks SET finished_at = now()",
        "tasks SET status = 'failed', finished_at = now()",
        "tasks SET status = 'done'",
        "runs SET status = 'lost'",
        "runs SET finished_at = now()",
        "runs SET status = 'running'",
        "runs SET status = 'claimed'",
    ],
)
def test_the_schema_refuses_states_that_contradict_themselves(executor, queue, pool, change):
    queue()

    with pytest.raises(psycopg.errors.CheckViolation):
        query(pool, f"UPDATE scheduler.{change}")


def test_a_column_of_a_later_version_does_not_disturb_this_one(user, database):
    task = user.create()
    with psycopg.connect(database.owner_dsn) as connection:
        connection.execute("ALTER TABLE scheduler.tasks ADD COLUMN of_a_later_version text")

    assert user.get(task["id"])["id"] == task["id"]
    assert user.create()["status"] == "pending"
    assert len(user("GET", "/api/tasks/").json["items"]) == 2
