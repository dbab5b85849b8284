"""Dispatch and sweep over real servers."""

from __future__ import annotations

import queue
import threading
import time
import uuid
from datetime import timedelta

import pytest

from libs.common.clock import format_time, parse_time, utc_now
from libs.common.config import Secret
from libs.common.consumer import Consumer, Delivery
from libs.common.errors import Unavailable
from libs.common.hints import HintListener
from libs.common.messages import decode_run_message
from libs.common.publisher import Publisher
from libs.common.topology import RUNS_QUEUE
from services.scheduler import loop_store, run_store
from services.scheduler.dispatch import DispatchConfig, Dispatcher, DispatchLoop
from services.scheduler.loops import LoopThread
from services.scheduler.sweep import SweepConfig, Sweeper
from services.scheduler.tests.executors import FakeExecutor
from services.scheduler.users_client import Deletion
from services.scheduler.wakeups import DISPATCH_CHANNEL, Waker

pytestmark = pytest.mark.component


def execute(pool, text, *parameters):
    with pool.connection() as connection:
        return connection.execute(text, parameters)


def statuses(user):
    return [task["status"] for task in user("GET", "/api/tasks/").json["items"]]


@pytest.fixture
def make_sweeper(pool, dispatcher, users, waker):
    def make(**config):
        return Sweeper(
            pool=pool, dispatcher=dispatcher, users=users, config=SweepConfig(**config), wake_dispatch=waker.wake
        )

    return make


@pytest.fixture
def sweeper(make_sweeper):
    return make_sweeper()


def test_nothing_is_dispatched_without_an_executor(user, dispatcher, publisher):
    user.create()

    assert dispatcher.run_once().dispatched == 0
    assert publisher.sent == []


def test_nothing_is_dispatched_while_the_broker_is_away(user, executor, dispatcher, publisher):
    task = user.create()
    publisher.is_there = False

    assert dispatcher.run_once().dispatched == 0
    assert user.get(task["id"])["status"] == "pending"


def test_a_task_is_never_dispatched_before_it_is_due_and_the_loop_sleeps_until_then(user, executor, dispatcher):
    due_at = utc_now() + timedelta(milliseconds=400)
    task = user.create(scheduledAt=format_time(due_at))

    early = dispatcher.run_once()
    time.sleep(early.sleep.total_seconds())
    on_time = dispatcher.run_once()

    assert early.dispatched == 0
    assert timedelta(0) < early.sleep <= timedelta(milliseconds=400)
    assert on_time.dispatched == 1
    assert due_at <= parse_time(user.get(task["id"])["queuedAt"]) <= due_at + timedelta(milliseconds=100)


def test_how_long_a_pass_over_what_is_held_back_took_makes_nothing_late(user, executor, dispatcher, publisher):
    user.create(pool="nobody-serves-it")
    user.create(scheduledAt=format_time(utc_now() + timedelta(milliseconds=400)))
    answers = publisher.answers

    def answer_late(*, timeout_seconds):
        time.sleep(0.2)
        return answers(timeout_seconds=timeout_seconds)

    publisher.answers = answer_late

    assert dispatcher.run_once().sleep <= timedelta(milliseconds=200)


def test_the_most_urgent_task_goes_first_then_the_longest_due(user, executor, dispatcher, publisher, pool):
    tasks = [user.create(priority=priority)["id"] for priority in (5, 9, 0, 9, 5)]

    dispatcher.run_once()

    rows = execute(pool, "SELECT id, task_id FROM scheduler.runs").fetchall()
    by_run = {str(row["id"]): str(row["task_id"]) for row in rows}
    expected = [tasks[1], tasks[3], tasks[0], tasks[4], tasks[2]]
    assert [by_run[run_id] for run_id in publisher.sent] == expected


def test_one_run_a_slot_is_on_its_way_and_one_fewer_waits_for_those_that_become_free(
    user, executor, dispatcher, publisher
):
    for _ in range(12):
        user.create()

    assert [dispatcher.run_once().dispatched for _ in range(2)] == [7, 0]
    executor.claim(*publisher.sent[:4])
    assert dispatcher.run_once().dispatched == 0, "three wait already, and no slot is free"
    executor.finish(publisher.sent[0])
    assert dispatcher.run_once().dispatched == 1


def test_two_dispatchers_never_dispatch_a_task_twice(user, client, pool, publisher):
    FakeExecutor(client, slots=1000).sync()
    for _ in range(60):
        user.create()
    dispatchers = [
        Dispatcher(pool=pool, publisher=publisher, config=DispatchConfig(batch_size=7)) for _ in range(4)
    ]

    def drain(dispatcher):
        while dispatcher.run_once().dispatched:
            pass

    threads = [threading.Thread(target=drain, args=(dispatcher,)) for dispatcher in dispatchers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(publisher.sent) == len(set(publisher.sent)) == 60
    assert set(statuses(user)) == {"queued"}


def test_what_the_broker_did_not_confirm_is_published_again(user, executor, dispatcher, publisher, sweeper, pool):
    publisher.confirms = False
    task = user.create()
    dispatcher.run_once()
    assert user.get(task["id"])["waiting"]["code"] == "broker"

    publisher.confirms = True
    assert sweeper.publish_again() == 1, "by whoever reaches the broker"

    assert user.get(task["id"])["waiting"]["code"] == "slot"
    assert len(publisher.sent) == 2


def test_a_run_that_nobody_claims_is_published_again_after_growing_pauses(
    user, executor, dispatcher, sweeper, pool
):
    user.create()
    dispatcher.run_once()

    pauses = []
    for _ in range(3):
        (row,) = execute(
            pool, "SELECT extract(epoch FROM next_publish_at - published_at)::int AS pause FROM scheduler.runs"
        ).fetchall()
        pauses.append(row["pause"])
        execute(pool, "UPDATE scheduler.runs SET next_publish_at = now()")
        assert sweeper.publish_again() == 1

    assert pauses == [30, 60, 120]


def test_a_run_whose_message_is_gone_from_the_broker_is_published_again_soon(
    user, executor, dispatcher, publisher, sweeper, pool
):
    user.create()
    dispatcher.run_once()
    execute(pool, "UPDATE scheduler.runs SET published_at = now() - interval '5 seconds'")

    assert sweeper.publish_again() == 0, "it may be the one that still waits there"
    publisher.waiting = 0
    assert sweeper.publish_again() == 1
    assert sweeper.publish_again() == 0, "not again at once"

    execute(pool, "UPDATE scheduler.runs SET published_at = now() - interval '9 seconds'")
    assert sweeper.publish_again() == 0, "the pauses grow here, too"
    execute(pool, "UPDATE scheduler.runs SET published_at = now() - interval '10 seconds'")
    assert sweeper.publish_again() == 1


def test_a_run_that_a_later_message_has_overtaken_is_published_again_soon(
    user, executor, dispatcher, publisher, sweeper, pool
):
    user.create()
    dispatcher.run_once()
    user.create()
    dispatcher.run_once()
    lost, later = publisher.sent
    age = "UPDATE scheduler.runs SET published_at = now() - %s::interval WHERE id = %s"
    execute(pool, age, "4 seconds", lost)
    executor.claim(later)

    assert sweeper.publish_again() == 0, "the two may have gone to different executors"
    execute(pool, age, "6 seconds", lost)
    assert sweeper.publish_again() == 1
    assert publisher.sent[-1] == lost


def test_runs_of_a_silent_engine_are_given_up_and_made_up_for(
    user, executor, dispatcher, publisher, make_sweeper, pool
):
    task = user.create()
    dispatcher.run_once()
    executor.claim(publisher.sent[-1])
    executor.start(publisher.sent[-1])
    sweeper = make_sweeper(executor_silence=timedelta(0))
    execute(pool, "UPDATE scheduler.leases SET expires_at = now() - interval '1 second'")

    assert sweeper.close_lost_runs() == 0, "the scheduler itself wasn't there to hear"
    with pool.connection() as connection:
        run_store.beat(connection, "http")
    execute(pool, "UPDATE scheduler.parts SET since = now() - interval '1 hour'")
    assert sweeper.close_lost_runs() == 1

    assert user.get(task["id"])["status"] == "pending"
    assert executor.sync()["released"] == [{"runId": publisher.sent[-1], "epoch": 1}]


def test_a_task_that_says_hold_waits_for_its_engine_unless_nobody_wants_it_any_more(
    user, executor, queue, make_sweeper, pool
):
    task, run_id = queue(onExecutorLost="hold")
    unwanted, unwanted_run_id = queue(onExecutorLost="hold")
    executor.claim(run_id, unwanted_run_id)
    executor.start(run_id)
    executor.start(unwanted_run_id)
    user("POST", f"/api/tasks/{unwanted['id']}/cancel")
    with pool.connection() as connection:
        run_store.beat(connection, "http")
    execute(pool, "UPDATE scheduler.parts SET since = now() - interval '1 hour'")
    execute(pool, "UPDATE scheduler.leases SET expires_at = now() - interval '1 second'")

    assert make_sweeper(executor_silence=timedelta(0)).close_lost_runs() == 1

    assert user.get(unwanted["id"])["status"] == "cancelled"
    assert user.get(task["id"])["status"] == "running"
    executor.finish(run_id, result=b"after all")
    assert user.get(task["id"])["result"] == "after all"


def test_runs_of_an_engine_that_was_heard_of_are_not_given_up(
    user, executor, dispatcher, publisher, make_sweeper, pool
):
    user.create()
    dispatcher.run_once()
    executor.claim(publisher.sent[-1])
    with pool.connection() as connection:
        run_store.beat(connection, "http")
    execute(pool, "UPDATE scheduler.parts SET since = now() - interval '1 hour'")
    execute(pool, "UPDATE scheduler.leases SET expires_at = now() - interval '1 hour'")

    assert make_sweeper(executor_silence=timedelta(seconds=30)).close_lost_runs() == 0


def test_a_deleted_task_is_purged_when_its_run_has_closed(user, executor, dispatcher, publisher, sweeper, pool):
    task = user.create()
    dispatcher.run_once()
    executor.claim(publisher.sent[-1])
    user("DELETE", f"/api/tasks/{task['id']}")

    assert sweeper.purge_deleted_tasks() == 0
    executor.print(publisher.sent[-1], b"last words")
    executor.finish(publisher.sent[-1], "lost")
    assert sweeper.purge_deleted_tasks() == 1

    for table in ("tasks", "runs", "run_logs", "leases"):
        assert execute(pool, f"SELECT * FROM scheduler.{table}").fetchall() == []  # noqa: S608


def test_waiting_tasks_of_deleted_users_are_cancelled_and_running_ones_go_on(
    user, other, executor, dispatcher, publisher, sweeper, users
):
    user.create(priority=9)
    user.create(priority=8)
    dispatcher.run_once()
    executor.claim(publisher.sent[0])
    executor.start(publisher.sent[0])
    user.create(scheduledAt=format_time(utc_now() + timedelta(hours=1)))
    other.create(scheduledAt=format_time(utc_now() + timedelta(hours=1)))
    users.deletions.append(Deletion(user.user_id, utc_now()))

    assert sweeper.cancel_tasks_of_deleted_users() == 2

    assert statuses(user) == ["cancelled", "cancelled", "running"]
    assert statuses(other) == ["pending"]
    assert sweeper.cancel_tasks_of_deleted_users() == 0


def test_the_sweep_goes_on_when_the_users_service_is_away(sweeper, users, monkeypatch):
    def fail(_since):
        raise Unavailable("away")

    monkeypatch.setattr(users, "list_deletions", fail)

    assert sweeper.run_once() == timedelta(seconds=1)


def test_a_beat_notices_a_gap(pool):
    def read():
        with pool.connection() as connection:
            return run_store.list_parts(connection)[0]

    with pool.connection() as connection:
        run_store.beat(connection, "http")
        first = read()
        run_store.beat(connection, "http")
        assert read() == first, "it is written once in a while only"
        connection.execute(
            "UPDATE scheduler.parts SET seen_at = now() - interval '10 s', since = now() - interval '1 h'"
        )
        run_store.beat(connection, "http")
        assert utc_now() - read().since > timedelta(minutes=59)
        connection.execute("UPDATE scheduler.parts SET seen_at = now() - interval '30 s'")
        run_store.beat(connection, "http")
        assert utc_now() - read().since < timedelta(seconds=5)


def test_a_million_waiting_tasks_do_not_slow_a_look_at_the_backlog_down(pool):
    """The plans stay index probes: a sequential scan of the tasks would be a defect."""
    with pool.connection() as connection:
        connection.execute("SET enable_seqscan = on")
        connection.execute(
            "INSERT INTO scheduler.tasks (id, user_id, image, timeout_seconds, stop_grace_seconds, cpus,"
            " memory_mb, pids, network, scheduled_at, due_at, request_id, status, finished_at)"
            " SELECT gen_random_uuid(), gen_random_uuid(), 'i', 1, 1, 1, 16, 1, 'none', now(),"
            "        now() + interval '1 hour', '', s.status, s.finished_at"
            "   FROM generate_series(1, 5000),"
            "        (VALUES ('pending', NULL), ('completed', now()), ('cancelled', now()))"
            "            AS s (status, finished_at)"
        )
        connection.execute("ANALYZE")
        lanes = {"pools": ["default"], "priorities": [5], "user_ids": [uuid.uuid4()], "keys": [""], "limits": [0]}
        plans = "\n".join(
            str(connection.execute(b"EXPLAIN " + loop_store.QUERIES[name], parameters).fetchall())
            for name, parameters in [
                ("look_ahead", {}),
                ("take_arrivals", {"limit": 100}),
                ("list_rooms", {"seen_within": timedelta(seconds=15)}),
                ("list_lanes", {"pools": ["default"], "limit": 100, "default_running": None, "many": 16}),
                ("lock_due_tasks", lanes | {"counts": [5]}),
                ("move_lanes", lanes),
                ("list_images_due_within", {"ahead": timedelta(minutes=5), "limit": 20}),
                ("purge_deleted_tasks", {"limit": 100}),
            ]
        )

    assert "Seq Scan on tasks" not in plans


def test_a_wake_up_starts_a_task_at_once(user, executor, pool, publisher, fresh_redis_url, dispatcher):
    loop = DispatchLoop(dispatcher=dispatcher)
    loop_thread = LoopThread(name="dispatch", run_once=loop.run_once, wait=loop.wait, pool=pool)
    listener = HintListener(fresh_redis_url, DISPATCH_CHANNEL, lambda _: loop.wake())
    waker = Waker(fresh_redis_url)
    listener.start()
    loop_thread.start()
    try:
        assert listener.wait_until_connected(5)
        time.sleep(0.2)
        begun = time.monotonic()
        user.create()
        waker.wake()
        while not publisher.sent:
            assert time.monotonic() - begun < 0.5, "slower than the tick would have been"
            time.sleep(0.005)
        assert loop_thread.is_alive
        assert loop_thread.check()["secondsSinceLastSuccess"] < 5
    finally:
        loop_thread.ask_to_stop()
        loop.wake()
        loop_thread.join(5)
        listener.close()
        waker.close()


def test_a_dead_redis_never_slows_a_wake_up():
    waker = Waker("redis://127.0.0.1:1/0")

    begun = time.monotonic()
    for _ in range(100):
        waker.wake()
    elapsed = time.monotonic() - begun
    waker.close()

    assert elapsed < 0.1


def test_a_loop_survives_whatever_a_pass_dies_of(pool):
    passes = []

    def fail():
        passes.append(1)
        raise ZeroDivisionError

    loop = LoopThread(name="sweep", run_once=fail, wait=lambda _pause: time.sleep(0.01), pool=pool)
    loop.start()
    deadline = time.monotonic() + 5
    while len(passes) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    loop.ask_to_stop()
    loop.join(5)

    with pytest.raises(LookupError):
        loop.check()


def test_a_dispatched_run_arrives_on_the_real_broker(user, executor, pool, broker_url):
    arrived: queue.Queue[Delivery] = queue.Queue()
    consumer = Consumer(name="test", broker_url=Secret(broker_url), queues=[RUNS_QUEUE], on_delivery=arrived.put)
    consumer.set_capacity(1)
    thread = threading.Thread(target=consumer.run, daemon=True)
    publisher = Publisher(broker_url, name="test")
    thread.start()
    publisher.start()
    try:
        assert publisher.wait_until_ready(10)
        task = user("POST", "/api/tasks/", json={"image": "busybox"}, headers={"X-Request-Id": "req-1"}).json

        assert Dispatcher(pool=pool, publisher=publisher, config=DispatchConfig()).run_once().dispatched == 1

        while decode_run_message((delivery := arrived.get(timeout=10)).body).task_id != uuid.UUID(task["id"]):
            consumer.done(delivery)
        consumer.done(delivery)
        assert delivery.request_id == "req-1"
        assert user.get(task["id"])["waiting"]["code"] == "slot"
    finally:
        publisher.close()
        consumer.end()
        thread.join(5)
