"""The executors' sync over a real database: claims, reports, output."""

from __future__ import annotations

import threading
import uuid
from datetime import timedelta

import pytest

from libs.common.clock import format_time, parse_time, utc_now
from services.scheduler.retry import LOST_LIMIT
from services.scheduler.tests.executors import FakeExecutor

pytestmark = pytest.mark.component


def query(pool, text, *parameters):
    with pool.connection() as connection:
        return connection.execute(text, parameters).fetchall()


def test_an_executor_is_told_whether_a_run_is_live_whoever_holds_it(client, executor, queue):
    _, queued = queue()
    _, held = queue()
    _, ended = queue()
    executor.claim(held, ended)
    executor.finish(ended)
    unknown = str(uuid.uuid4())
    colleague = FakeExecutor(client, name="e2")

    asked = [queued, held, ended, unknown]
    answers = colleague.sync(questions=[{"runId": run_id} for run_id in asked])["answers"]

    assert answers == [
        {"runId": run_id, "live": live} for run_id, live in zip(asked, (True, True, False, False), strict=True)
    ]


def test_the_internal_api_wants_the_service_token(client, user):
    for headers in [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer ünï"}]:
        answer = client.post("/internal/executors/sync", json={}, headers=headers)

        assert answer.status_code == 401
    assert user("POST", "/internal/executors/sync", json={}).status_code == 401


@pytest.mark.parametrize(
    "lists",
    [
        {"executor": None},
        {"claims": [{"runId": "x"}]},
        {"claims": 5},
        {"held": [{"runId": str(uuid.uuid4()), "epoch": 2**40}]},
        {"reports": [{"runId": str(uuid.uuid4()), "epoch": 1, "event": "finished"}]},
        {"reports": [{"runId": str(uuid.uuid4()), "epoch": 1, "event": "exploded"}]},
        {"logs": [{"runId": str(uuid.uuid4()), "epoch": 1, "seq": 1, "stream": "stdout", "at": "x", "data": "?"}]},
    ],
)
def test_a_malformed_sync_is_422(executor, lists):
    assert executor.post(**lists).status_code == 422


def test_a_run_goes_from_claim_to_completion(user, executor, queue):
    task, run_id = queue(
        command="echo", args=["a b", "$(c)"], environment={"A": "x=\n ☃"}, timeoutSeconds=7, network="none"
    )
    assert user.get(task["id"])["status"] == "queued"

    (claim,) = executor.claim(run_id)

    assert claim["granted"] is True
    assert claim["epoch"] == 1
    assert claim["task"] | {"scheduledAt": "", "requestId": ""} == {
        "taskId": task["id"],
        "runId": run_id,
        "userId": str(user.user_id),
        "number": 1,
        "image": "busybox",
        "command": "echo",
        "args": ["a b", "$(c)"],
        "entrypoint": None,
        "environment": {"A": "x=\n ☃"},
        "timeoutSeconds": 7,
        "stopGraceSeconds": 10,
        "cpus": 1.0,
        "memoryMb": 256,
        "pids": 128,
        "network": "none",
        "scheduledAt": "",
        "requestId": "",
    }
    assert user.get(task["id"])["waiting"]["code"] == "preparing"

    assert executor.start(run_id)["reports"][0]["accepted"] is True
    running = user.get(task["id"])
    assert (running["status"], running["waiting"], running["attempts"]) == ("running", None, 1)
    executor.print(run_id, b"one\ntwo\n")
    executor.print(run_id, b"oops\n", stream="stderr")
    executor.print(run_id, b"\xff\x00three", seq=7)
    executor.print(run_id, b"\xff\x00three", seq=7)
    executor.finish(run_id, result=b"one\ntwo\n\xff\x00three", maxMemoryMb=12)

    done = user.get(task["id"])
    assert (done["status"], done["exitCode"], done["reason"]) == ("completed", 0, None)
    assert done["result"] == "one\ntwo\n\\xff\x00three"
    assert parse_time(done["createdAt"]) <= parse_time(done["queuedAt"]) <= parse_time(done["startedAt"])
    assert parse_time(done["startedAt"]) <= parse_time(done["finishedAt"])
    (run,) = user("GET", f"/api/tasks/{task['id']}/runs").json["items"]
    assert (run["number"], run["status"], run["executorId"], run["imageDigest"], run["maxMemoryMb"]) == (
        1,
        "completed",
        "e1",
        "sha256:1",
        12,
    )

    def log(**query):
        answer = user("GET", f"/api/tasks/{task['id']}/logs", query_string=query)
        assert answer.status_code == 200
        return answer.data

    assert log() == b"one\ntwo\noops\n\xff\x00three"
    assert log(stream="stdout", attempt=1) == b"one\ntwo\n\xff\x00three"
    assert log(stream="stderr") == b"oops\n"
    assert log(tail=2) == b"oops\n\xff\x00three"


def test_a_run_that_started_and_ended_between_two_syncs_is_written_at_once(user, executor, queue):
    task, run_id = queue()
    executor.claim(run_id)
    now = format_time(utc_now())

    answer = executor.sync(
        reports=[
            {"runId": run_id, "epoch": 1, "event": "started", "startedAt": now, "containerId": "c"},
            {
                "runId": run_id,
                "epoch": 1,
                "event": "finished",
                "outcome": "failed",
                "reason": "exit_nonzero",
                "exitCode": 3,
                "errorMsg": "It exited with 3.",
                "startedAt": now,
                "finishedAt": now,
            },
        ]
    )

    assert [report["accepted"] for report in answer["reports"]] == [True, True]
    assert answer["released"] == []
    done = user.get(task["id"])
    assert (done["status"], done["reason"], done["exitCode"]) == ("failed", "exit_nonzero", 3)
    assert done["errorMsg"] == "It exited with 3."
    assert done["startedAt"] is not None


def test_a_run_is_claimed_by_one_executor_only(client, executor, queue):
    _, run_id = queue()
    executors = [FakeExecutor(client, name=f"e{number}", engine=f"engine-{number}") for number in range(8)]
    for each in executors:
        each.sync()
    barrier = threading.Barrier(len(executors))
    granted: list[bool] = []

    def race(each):
        barrier.wait()
        granted.append(each.claim(run_id)[0]["granted"])

    threads = [threading.Thread(target=race, args=(each,)) for each in executors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(granted) == [False] * 7 + [True]


def test_a_claim_whose_answer_was_lost_is_granted_again_with_the_same_epoch(executor, queue):
    _, run_id = queue()
    (first,) = executor.claim(run_id)
    executor.held.clear()

    (again,) = executor.claim(run_id)

    assert again == first


def test_a_claim_of_what_is_held_already_is_refused(executor, queue):
    _, run_id = queue()
    executor.claim(run_id)

    assert executor.claim(run_id) == [{"runId": run_id, "granted": False, "reason": "not_queued"}]


def test_claims_are_refused_with_what_was_wrong(user, executor, queue):
    deleted_task, deleted_run = queue()
    user("DELETE", f"/api/tasks/{deleted_task['id']}")
    cancelled_task, cancelled_run = queue()
    user("POST", f"/api/tasks/{cancelled_task['id']}/cancel")
    unknown_run = str(uuid.uuid4())

    answers = executor.claim(deleted_run, cancelled_run, unknown_run)

    assert [answer["reason"] for answer in answers] == ["unknown", "cancelled", "unknown"]


def test_a_finished_report_may_be_sent_twice(user, executor, queue):
    task, run_id = queue()
    executor.claim(run_id)
    executor.finish(run_id, result=b"first")

    answer = executor.report(run_id, "finished", epoch=1, outcome="failed", reason="timeout")

    assert answer["reports"][0]["accepted"] is True
    assert user.get(task["id"])["result"] == "first"


def test_a_report_with_an_old_epoch_changes_nothing(user, executor, queue):
    task, run_id = queue()
    executor.claim(run_id)

    answer = executor.report(run_id, "finished", epoch=0, outcome="completed")

    assert answer["reports"][0]["accepted"] is False
    assert user.get(task["id"])["status"] == "queued"


def test_times_of_a_skewed_engine_clock_are_kept_between_the_claim_and_now(user, executor, queue):
    task, run_id = queue()
    executor.claim(run_id)

    executor.finish(run_id, startedAt="0001-01-01T00:00:00Z", finishedAt="9999-12-31T23:59:59Z")

    done = user.get(task["id"])
    assert parse_time(done["queuedAt"]) <= parse_time(done["startedAt"]) <= parse_time(done["finishedAt"])
    assert parse_time(done["finishedAt"]) <= utc_now() + timedelta(seconds=1)


def test_whatever_an_engine_says_can_be_stored_and_answered(user, executor, queue):
    task, run_id = queue()
    executor.claim(run_id)

    executor.finish(
        run_id, "failed", reason="sunspots", errorMsg="a\x00b\ud800" + "c" * 10_000, result=bytes(range(256))
    )

    done = user.get(task["id"])
    assert (done["status"], done["reason"]) == ("failed", "engine_error")
    assert done["errorMsg"].startswith("a\\x00b\\ud800c")
    assert done["result"].startswith("\x00\x01")


def test_only_the_last_64_kib_of_a_result_are_kept(user, executor, queue):
    task, run_id = queue()
    executor.claim(run_id)

    executor.finish(run_id, result=b"x" + "☃".encode() * 40_000)

    assert user.get(task["id"])["result"] == "☃" * (65536 // 3)


def test_a_cancel_reaches_the_executor_and_the_task_ends_cancelled(user, executor, queue):
    task, run_id = queue()
    executor.claim(run_id)
    executor.start(run_id)

    answer = user("POST", f"/api/tasks/{task['id']}/cancel")
    told = executor.sync()
    told_again = executor.sync()
    executor.finish(run_id, "failed", reason="exit_nonzero", exitCode=143)

    assert answer.status_code == 202
    assert told["stop"] == told_again["stop"] == [{"runId": run_id, "epoch": 1, "reason": "cancelled"}]
    done = user.get(task["id"])
    assert (done["status"], done["reason"], done["exitCode"]) == ("cancelled", None, 143)


def test_a_run_that_is_stopped_before_it_started_stays_stopping(user, executor, queue, pool):
    task, run_id = queue()
    executor.claim(run_id)
    user("POST", f"/api/tasks/{task['id']}/cancel")

    executor.start(run_id)

    assert query(pool, "SELECT status FROM scheduler.runs")[0]["status"] == "stopping"
    assert user.get(task["id"])["status"] == "running"
    executor.finish(run_id)
    assert user.get(task["id"])["status"] == "cancelled"


def test_a_deleted_running_task_is_invisible_at_once_and_its_run_is_stopped(user, executor, queue):
    task, run_id = queue()
    executor.claim(run_id)
    executor.start(run_id)

    assert user("DELETE", f"/api/tasks/{task['id']}").status_code == 204

    assert user("GET", f"/api/tasks/{task['id']}").status_code == 404
    assert user("DELETE", f"/api/tasks/{task['id']}").status_code == 404
    assert user("GET", "/api/tasks/").json["items"] == []
    assert [entry["runId"] for entry in executor.sync()["stop"]] == [run_id]


def test_a_lost_run_brings_its_task_back_and_does_not_count(user, executor, queue, dispatcher, publisher):
    task, run_id = queue()
    executor.claim(run_id)
    executor.start(run_id)

    executor.finish(run_id, "lost")

    back = user.get(task["id"])
    assert (back["status"], back["attempts"], back["startedAt"], back["result"]) == ("pending", 0, None, None)
    assert dispatcher.run_once().dispatched == 1
    executor.claim(publisher.sent[-1])
    executor.finish(publisher.sent[-1])
    done = user.get(task["id"])
    assert (done["status"], done["attempts"]) == ("completed", 1)
    runs = user("GET", f"/api/tasks/{task['id']}/runs").json["items"]
    assert [(run["number"], run["status"], run["reason"]) for run in runs] == [
        (2, "completed", None),
        (1, "lost", "executor_lost"),
    ]


def test_a_task_that_is_lost_too_often_fails(user, executor, dispatcher, publisher, pool):
    task = user.create()

    for _ in range(LOST_LIMIT + 1):
        with pool.connection() as connection:
            connection.execute("UPDATE scheduler.tasks SET due_at = now()")
        dispatcher.run_once()
        executor.claim(publisher.sent[-1])
        executor.finish(publisher.sent[-1], "lost")

    done = user.get(task["id"])
    assert (done["status"], done["reason"]) == ("failed", "executor_lost")
    assert "create the task again" in done["errorMsg"]


def test_images_that_are_needed_soon_are_told(user, client):
    user.create(image="soon:1", scheduledAt=format_time(utc_now() + timedelta(minutes=4)))
    user.create(image="soon:1", scheduledAt=format_time(utc_now() + timedelta(minutes=3)))
    user.create(image="later:1", scheduledAt=format_time(utc_now() + timedelta(minutes=6)))
    executor = FakeExecutor(client)

    assert executor.sync()["prefetch"] == ["soon:1"]


def test_a_new_executor_and_a_claim_wake_the_dispatch_loop(executor, queue, waker):
    _, run_id = queue()
    before = waker.count

    executor.sync()
    assert waker.count == before
    executor.claim(run_id)
    assert waker.count == before + 1
    executor.reboot()
    executor.sync()
    assert waker.count == before + 2
