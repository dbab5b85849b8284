"""The line over a real database, with several loops at once: shares, quotas, groups and pools are exact."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import structlog
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from libs.common.clock import format_time, utc_now
from libs.common.postgres import Pool
from services.scheduler.dispatch import DispatchConfig, Dispatcher
from services.scheduler.tests.conftest import FakePublisher
from services.scheduler.tests.executors import FakeExecutor

pytestmark = pytest.mark.component

LOOPS = 3
USERS = tuple(UUID(int=number) for number in range(1, 5))
LIMITS = {"": 0, "a": 1, "b": 3}
POOLS = ("default", "gpu")

_EMPTY = (
    "DELETE FROM scheduler.tasks; DELETE FROM scheduler.executors; DELETE FROM scheduler.quotas;"
    "DELETE FROM scheduler.lanes; DELETE FROM scheduler.arrivals"
)
_ADD_TASKS = """
INSERT INTO scheduler.tasks (
    id, user_id, image, timeout_seconds, stop_grace_seconds, cpus, memory_mb, pids, network,
    scheduled_at, due_at, request_id, priority, pool, concurrency_key, concurrency_limit)
SELECT gen_random_uuid(), %(user_id)s, 'i', 1, 1, 1, 16, 1, 'none', now(), now(), '', %(priority)s, %(pool)s,
       %(key)s, %(limit)s
  FROM generate_series(1, %(count)s)
"""
_ADD_EXECUTOR = """
INSERT INTO scheduler.executors (id, boot_id, engine_id, host, slots, running, pools)
VALUES (%s, 'b', 'g', 'h', %s, 0, %s)
"""
_LIVE = """
SELECT t.user_id, t.pool, t.priority, t.concurrency_key, t.concurrency_limit, t.status
  FROM scheduler.tasks t
 WHERE t.status IN ('pending', 'queued')
"""
# As a cancel does.
_END_SOME = """
WITH ended AS (
    UPDATE scheduler.runs SET status = 'cancelled', finished_at = now()
     WHERE status = 'queued' AND mod(hashtext(id::text), %(of)s) = 0
    RETURNING task_id)
UPDATE scheduler.tasks SET status = 'cancelled', finished_at = now() WHERE id IN (SELECT task_id FROM ended)
"""


@dataclass(frozen=True)
class Waiting:
    """So many tasks of one lane."""

    user_id: UUID
    pool: str
    priority: int
    key: str
    count: int


@dataclass(frozen=True)
class Found:
    """What is under way and what waits, after all loops have done what they could."""

    queued: list[dict[str, Any]]
    pending: list[dict[str, Any]]

    def count(self, *names: str) -> Counter[Any]:
        return Counter(tuple(row[name] for name in names) for row in self.queued)


class World:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.publisher = FakePublisher()
        self.execute(_EMPTY)

    def execute(self, text: str, parameters: Any = None) -> Any:
        with self._pool.connection() as connection:
            return connection.execute(text.encode(), parameters)

    def add(self, waiting: Waiting) -> None:
        facts = vars(waiting) | {"limit": LIMITS[waiting.key]}
        self.execute(_ADD_TASKS, facts)

    def add_executor(self, slots: int, pools: list[str]) -> None:
        self.execute(_ADD_EXECUTOR, (str(uuid.uuid4()), slots, pools))

    def dispatch(self, default_running: int | None = None) -> Found:
        """Several loops at once, each until it finds no more to do."""
        failures: list[BaseException] = []

        def loop() -> None:
            config = DispatchConfig(batch_size=7, default_running=default_running)
            dispatcher = Dispatcher(pool=self._pool, publisher=self.publisher, config=config)
            try:
                while dispatcher.run_once().sleep == timedelta(0):
                    pass
            except Exception as error:  # noqa: BLE001  Whatever it is, the test shows it.
                failures.append(error)

        threads = [threading.Thread(target=loop) for _ in range(LOOPS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        rows = self.execute(_LIVE).fetchall()
        return Found(
            [row for row in rows if row["status"] == "queued"], [row for row in rows if row["status"] == "pending"]
        )


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Thousands of dispatched runs are no news here."""
    with structlog.testing.capture_logs():
        yield


examples = settings(
    max_examples=15,
    phases=[Phase.generate, Phase.shrink],
    database=None,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
waitings = st.builds(
    Waiting,
    user_id=st.sampled_from(USERS),
    pool=st.sampled_from(POOLS),
    priority=st.integers(4, 6),
    key=st.sampled_from(list(LIMITS)),
    count=st.integers(1, 12),
)


@examples
@given(
    lanes=st.lists(waitings, min_size=1, max_size=10),
    slots=st.fixed_dictionaries({pool: st.integers(1, 8) for pool in POOLS}),
    quotas=st.dictionaries(st.sampled_from(USERS), st.integers(0, 4)),
    ends=st.lists(st.integers(1, 3), max_size=3),
)
def test_several_loops_keep_to_quotas_groups_and_room_and_leave_nothing_that_may_go(
    pool, lanes, slots, quotas, ends
):
    world = World(pool)
    for name, count in slots.items():
        world.add_executor(count, [name])
    for user_id, running in quotas.items():
        world.execute("INSERT INTO scheduler.quotas (user_id, running) VALUES (%s, %s)", (user_id, running))
    for lane in lanes:
        world.add(lane)

    for end in [None, *ends]:
        if end is not None:
            world.execute(_END_SOME, {"of": end})
        found = world.dispatch(default_running=5)

        of_user, of_pool, of_group = (
            found.count("user_id"),
            found.count("pool"),
            found.count("user_id", "concurrency_key"),
        )
        room = {name: 2 * count - 1 for name, count in slots.items()}
        limit_of = {user_id: quotas.get(user_id, 5) for user_id in USERS}
        assert all(count <= limit_of[user_id] for (user_id,), count in of_user.items())
        assert all(count <= room[name] for (name,), count in of_pool.items())
        assert all(count <= LIMITS[key] for (_, key), count in of_group.items() if key)
        left = [
            row
            for row in found.pending
            if of_user[(row["user_id"],)] < limit_of[row["user_id"]]
            and of_pool[(row["pool"],)] < room[row["pool"]]
            and (
                not row["concurrency_key"]
                or of_group[(row["user_id"], row["concurrency_key"])] < row["concurrency_limit"]
            )
        ]
        assert left == []
    assert len(world.publisher.sent) == len(set(world.publisher.sent))


@examples
@given(counts=st.dictionaries(st.sampled_from(USERS), st.integers(1, 30), min_size=2), slots=st.integers(1, 12))
def test_no_user_who_still_waits_has_got_less_than_another(pool, counts, slots):
    world = World(pool)
    world.add_executor(slots, ["default"])
    for user_id, count in counts.items():
        world.add(Waiting(user_id=user_id, pool="default", priority=5, key="", count=count))

    found = world.dispatch()

    given_to = found.count("user_id")
    waiting = {row["user_id"] for row in found.pending}
    assert sum(given_to.values()) == min(2 * slots - 1, sum(counts.values()))
    for user_id in waiting:
        assert max(given_to.values()) <= given_to[(user_id,)] + 1


@examples
@given(lanes=st.lists(waitings, min_size=1, max_size=8), slots=st.integers(1, 12))
def test_nothing_waits_while_something_less_urgent_of_its_pool_goes(pool, lanes, slots):
    world = World(pool)
    world.add_executor(slots, ["default"])
    for lane in lanes:
        world.add(Waiting(**vars(lane) | {"pool": "default", "key": ""}))

    found = world.dispatch()

    going = [row["priority"] for row in found.queued]
    waiting = [row["priority"] for row in found.pending]
    assert min(going) >= max(waiting, default=0)


@examples
@given(
    steps=st.lists(st.sampled_from(["create", "later", "cancel", "dispatch", "end"]), min_size=3, max_size=20),
    data=st.data(),
)
def test_whatever_happened_before_nothing_is_forgotten_in_the_line(pool, steps, data):
    """The promise of the lanes: every pending task is dispatched once there is room for all."""
    world = World(pool)
    world.add_executor(2, list(POOLS))
    for step in steps:
        if step == "create":
            world.add(data.draw(waitings))
        elif step == "later":
            world.execute(
                "UPDATE scheduler.tasks SET due_at = now() + interval '1 hour'"
                " WHERE id IN (SELECT id FROM scheduler.tasks WHERE status = 'pending' LIMIT 2)"
            )
        elif step == "cancel":
            world.execute(
                "UPDATE scheduler.tasks SET status = 'cancelled', finished_at = now()"
                " WHERE id IN (SELECT id FROM scheduler.tasks WHERE status = 'pending' ORDER BY due_at LIMIT 3)"
            )
        elif step == "end":
            world.execute(_END_SOME, {"of": 2})
        else:
            world.dispatch()

    world.execute(
        "UPDATE scheduler.tasks SET due_at = now() - interval '1 s' WHERE status = 'pending' AND due_at > now()"
    )
    world.execute("UPDATE scheduler.executors SET slots = 1000")
    while True:
        found = world.dispatch()
        if not found.pending:
            break
        assert found.queued, "only groups may hold something back"
        world.execute(_END_SOME, {"of": 1})

    assert world.execute("SELECT * FROM scheduler.lanes WHERE due_at <= now()").fetchall() == []


def test_a_task_of_a_group_starts_when_the_one_before_it_has_ended(user, executor, dispatcher, publisher):
    first, second = (user.create(concurrency={"key": "k", "limit": 1}) for _ in range(2))
    other_key = user.create(concurrency={"key": "other", "limit": 1})
    while dispatcher.run_once().dispatched:
        pass
    assert len(publisher.sent) == 2
    waiting = user.get(second["id"])

    executor.claim(*publisher.sent)
    executor.finish(publisher.sent[0])
    assert dispatcher.run_once().dispatched == 1

    assert user.get(first["id"])["status"] == "completed"
    assert user.get(other_key["id"])["status"] == "queued"
    assert (waiting["waiting"]["code"], waiting["position"]) == ("concurrency", None)
    assert "key k" in waiting["waiting"]["text"]
    assert waiting["concurrency"] == {"key": "k", "limit": 1}


def test_groups_of_two_users_have_nothing_to_do_with_each_other(user, other, executor, dispatcher, publisher):
    for owner in (user, other):
        owner.create(concurrency={"key": "k", "limit": 1})

    dispatcher.run_once()

    assert len(publisher.sent) == 2


def test_who_comes_late_goes_next_and_a_more_urgent_task_before_that(
    user, other, executor, dispatcher, publisher, pool
):
    for _ in range(20):
        user.create()
    dispatcher.run_once()
    executor.claim(*publisher.sent[:4])
    late, urgent = other.create(), user.create(priority=6)
    assert dispatcher.run_once().dispatched == 0, "no slot is free, and three wait on the broker"
    positions = [owner.get(task["id"])["position"] for owner, task in ((user, urgent), (other, late))]

    executor.finish(publisher.sent[0])
    dispatcher.run_once()
    executor.claim(*publisher.sent[4:5])
    executor.finish(publisher.sent[1])
    dispatcher.run_once()

    sent = {str(row["id"]): str(row["task_id"]) for row in _list_runs(pool)}
    assert [sent[run_id] for run_id in publisher.sent[7:]] == [urgent["id"], late["id"]]
    assert positions == [4, 5]


def _list_runs(pool: Pool) -> list[dict[str, Any]]:
    with pool.connection() as connection:
        return connection.execute("SELECT id, task_id FROM scheduler.runs").fetchall()


def test_a_pool_without_an_executor_holds_up_nobody_and_says_so(user, executor, dispatcher, publisher, client):
    tasks = [user.create(pool="gpu") for _ in range(2)]
    user.create()
    dispatcher.run_once()
    assert len(publisher.sent) == 1
    waiting = [user.get(task["id"]) for task in tasks]

    FakeExecutor(client, name="e2", engine="engine-2", pools=["gpu"]).sync()
    dispatcher.run_once()

    assert len(publisher.sent) == 3
    assert [task["waiting"]["code"] for task in waiting] == ["no_executor", "no_executor"]
    assert [task["position"] for task in waiting] == [1, 2]
    assert "pool gpu" in waiting[0]["waiting"]["text"]


def test_a_long_line_is_not_counted_to_its_end(user, executor, dispatcher, pool):
    world = World(pool)
    executor.sync()
    world.add(Waiting(user_id=user.user_id, pool="default", priority=5, key="", count=1500))
    dispatcher.run_once()
    last = user.create()

    task = user.get(last["id"])

    assert (task["waiting"]["code"], task["position"]) == ("behind_others", 1001)
    assert "More than 1000" in task["waiting"]["text"]


def test_a_task_that_is_not_due_has_no_place(user, executor):
    task = user.create(scheduledAt=format_time(utc_now() + timedelta(hours=1)))

    assert user.get(task["id"])["position"] is None
