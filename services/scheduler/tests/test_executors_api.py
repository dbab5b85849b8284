"""Executors, as an admin sees and drains them."""

from __future__ import annotations

import pytest

from services.scheduler.tests.executors import FakeExecutor

pytestmark = pytest.mark.component


def list_executors(admin, **query):
    answer = admin("GET", "/api/executors/", query_string=query)
    assert answer.status_code == 200, answer.json
    return answer.json


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/api/executors/"), ("POST", "/api/executors/e1/drain"), ("POST", "/api/executors/e1/undrain")],
)
def test_executors_are_the_admins_business(user, executor, method, path):
    answer = user(method, path)

    assert (answer.status_code, answer.json["code"]) == (403, "role_lacking")


def test_the_list_shows_what_each_executor_is_and_does(admin, client, executor, queue, pool):
    FakeExecutor(client, name="a0", engine="engine-0", slots=9, pools=["gpu", "default"]).sync()
    with pool.connection() as connection:
        connection.execute(
            "UPDATE scheduler.executors SET last_seen_at = now() - interval '1 min' WHERE id = 'a0'"
        )
    _, run_id = queue()
    executor.claim(run_id)

    first, second = list_executors(admin)["items"]

    times = {"startedAt", "lastSeenAt"}
    assert {key: value for key, value in second.items() if key not in times} == {
        "id": "e1",
        "host": "host",
        "engine": "engine-1",
        "pools": ["default"],
        "slots": 4,
        "running": 1,
        "state": "active",
    }
    assert times <= set(second)
    assert (first["id"], first["state"], first["pools"]) == ("a0", "silent", ["gpu", "default"])


def test_the_list_comes_in_pages(admin, client):
    names = [f"e{number}" for number in range(5)]
    for name in reversed(names):
        FakeExecutor(client, name=name).sync()

    pages: list[list[str]] = []
    cursor = None
    while not pages or cursor:
        page = list_executors(admin, limit=2, **({"cursor": cursor} if cursor else {}))
        pages.append([item["id"] for item in page["items"]])
        cursor = page["nextCursor"]

    assert pages == [names[:2], names[2:4], names[4:]]
    assert admin("GET", "/api/executors/", query_string={"cursor": "ÿ"}).status_code == 422


def test_an_executor_that_nobody_knows_is_not_found(admin):
    assert admin("POST", "/api/executors/nobody/drain").status_code == 404


def test_a_drained_executor_finishes_what_it_has_and_is_granted_nothing_more(
    admin, user, client, executor, queue, dispatcher, publisher
):
    running, run_id = queue()
    waiting, queued_run_id = queue()
    executor.claim(run_id)
    executor.start(run_id)

    drained = admin("POST", "/api/executors/e1/drain")
    (claim,) = executor.claim(queued_run_id)
    user.create()

    assert (drained.status_code, drained.json["state"], drained.json["running"]) == (200, "draining", 1)
    assert (claim["granted"], claim["reason"]) == (False, "draining")
    assert executor.sync()["draining"] is True
    assert dispatcher.run_once().dispatched == 0, "no other executor takes anything"
    assert "drained" in user.get(waiting["id"])["waiting"]["text"]
    executor.finish(run_id)
    assert user.get(running["id"])["status"] == "completed"
    # Another one, on the same engine or not, takes what was refused.
    assert FakeExecutor(client, name="e2").claim(queued_run_id)[0]["granted"]


def test_a_claim_that_was_granted_before_the_drain_is_granted_again_when_its_answer_was_lost(
    admin, executor, queue
):
    _, run_id = queue()
    executor.sync(claims=[{"runId": run_id}])
    admin("POST", "/api/executors/e1/drain")

    (claim,) = executor.claim(run_id)

    assert (claim["granted"], claim["epoch"]) == (True, 1)


def test_an_undrained_executor_takes_runs_again_and_a_restart_does_not_undrain(
    admin, user, executor, dispatcher, publisher, waker
):
    admin("POST", "/api/executors/e1/drain")
    executor.reboot()
    assert executor.sync()["draining"] is True
    user.create()
    assert dispatcher.run_once().dispatched == 0
    woken = waker.count

    undrained = admin("POST", "/api/executors/e1/undrain")

    assert undrained.json["state"] == "active"
    assert waker.count == woken + 1
    assert executor.sync()["draining"] is False
    assert dispatcher.run_once().dispatched == 1
    assert executor.claim(publisher.sent[-1])[0]["granted"]


def test_a_task_whose_image_is_being_pulled_says_so(user, executor, queue):
    task, run_id = queue()
    executor.claim(run_id)
    held = {"runId": run_id, "epoch": 1}

    codes = []
    for pulling in (True, False):
        executor.sync(held=[held | {"pulling": pulling}])
        codes.append(user.get(task["id"])["waiting"]["code"])

    assert codes == ["pulling", "preparing"]
