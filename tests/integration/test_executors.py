from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

import pytest

from tests.integration.client import User, expect, in_seconds, shell, to_time
from tests.integration.stack import Stack

pytestmark = pytest.mark.integration

TASKS = 60


@pytest.fixture(scope="module")
def three_executors(stack: Stack) -> Iterator[None]:
    stack.scale("executor", 3)
    stack.wait_until_ready(executors=3)
    yield
    stack.scale("executor", 1)
    stack.wait_until_ready()


def test_sixty_tasks_due_at_once_are_shared_by_three_executors_and_run_once_each(
    user: User, three_executors: None
):
    due = in_seconds(6)
    created = [user.api.create_task("echo", str(number), scheduledAt=due)["id"] for number in range(TASKS)]

    ended = [user.api.wait_for(task_id, "completed", seconds=90) for task_id in created]

    runs = [user.api.list_runs(task_id) for task_id in created]
    assert [task["result"] for task in ended] == [f"{number}\n" for number in range(TASKS)]
    assert {task["attempts"] for task in ended} == {1}
    assert {len(of_task) for of_task in runs} == {1}
    shares = Counter(of_task[0]["executorId"] for of_task in runs)
    assert len(shares) == 3, shares
    assert min(shares.values()) >= TASKS // 10, shares
    first, last = (pick(to_time(task["startedAt"]) for task in ended) for pick in (min, max))
    assert first >= to_time(due)
    assert last - first < timedelta(seconds=45)


def test_the_runs_of_an_executor_that_stays_away_are_taken_over_on_the_same_engine(
    stack: Stack, user: User, three_executors: None
):
    script = "echo started; sleep 6; echo done"
    created = [expect(user.api.post("/api/tasks/", shell(script)), 201)["id"] for _ in range(6)]
    for task_id in created:
        user.api.wait_for(task_id, "running")
    holders = {task_id: stack.executor_of(task_id) for task_id in created}
    busiest = statistics.mode(holders.values())
    held = [task_id for task_id in created if holders[task_id] == busiest]
    (victim,) = (each for each in stack.containers("executor") if each.id[:12] == busiest)

    victim.kill()
    ended = [user.api.wait_for(task_id, "completed", seconds=60) for task_id in created]

    assert {task["attempts"] for task in ended} == {1}
    for task_id in created:
        assert user.api.read_logs(task_id) == b"started\ndone\n"
    for task_id in held:
        (run,) = user.api.list_runs(task_id)
        assert run["executorId"] != victim.id[:12]
    victim.start()
