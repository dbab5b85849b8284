"""Output that is read and followed while it comes."""

from __future__ import annotations

import base64
import threading
from typing import Any

import pytest

from tests.integration.client import Api, User, expect, expect_problem, in_seconds, shell, sign_up
from tests.integration.events import Stream, cancel, follow, read_text
from tests.integration.stack import Stack
from tests.polling import wait_until

pytestmark = pytest.mark.integration

CAP = 5 * 1024 * 1024
MARK = b"\n[output truncated: this attempt wrote more than is kept]\n"


def start(user: User, script: str, **fields: Any) -> str:
    task_id: str = expect(user.api.post("/api/tasks/", shell(script, **fields)), 201)["id"]
    return task_id


def test_what_is_printed_reaches_a_follower_while_the_task_runs(user: User):
    task_id = start(user, "echo one; echo two >&2; sleep 600", stopGraceSeconds=0)

    events = follow(user.api, task_id)
    seen = [next(events), next(events)]
    status = user.api.get_task(task_id)["status"]
    cancel(user.api, task_id)
    (end,) = events

    assert status in ("queued", "running"), "what is printed is faster than the word of its start"
    assert sorted((sent.data["stream"], sent.data["text"]) for sent in seen) == [
        ("stderr", "two\n"),
        ("stdout", "one\n"),
    ]
    assert [sent.id for sent in seen] == sorted(int(str(sent.id)) for sent in seen)
    assert (end.name, end.data["status"]) == ("end", "cancelled")


def test_a_follower_that_comes_first_gets_the_last_word_of_a_task_that_dies_at_once(user: User):
    task_id = start(user, "printf 'gone in a moment'; exit 7", scheduledAt=in_seconds(1))

    *printed, end = follow(user.api, task_id)

    assert "".join(sent.data["text"] for sent in printed) == "gone in a moment"
    assert end.data == {"status": "failed", "reason": "exit_nonzero", "exitCode": 7, "attempt": 1}


def test_follow_true_is_the_same_without_the_header(user: User):
    task_id = start(user, "echo done")
    user.api.wait_for(task_id, "completed")

    response = user.api.get(f"/api/tasks/{task_id}/logs", params={"follow": "true"})

    assert response.headers["Content-Type"] == "text/event-stream"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.content.startswith(b"retry: ")
    assert b"event: end\ndata: " in response.content


def test_a_stream_goes_on_behind_the_last_event_and_not_from_something_else(user: User):
    task_id = start(user, "for i in 1 2 3; do echo $i; sleep 0.7; done")
    first = next(iter(follow(user.api, task_id)))

    rest = read_text(iter(Stream(user.api, task_id, last_event_id=first.id)))

    assert first.data["text"] + rest == "1\n2\n3\n"
    for wrong in ("x", "-1", "1.5", str(9 << 40), "9" * 30):
        problem = expect_problem(
            user.api.get(f"/api/tasks/{task_id}/logs?follow=true", headers={"Last-Event-ID": wrong}), 422
        )
        assert list(problem["errors"]) == ["Last-Event-ID"]


def test_a_stream_of_a_task_that_is_tried_again_goes_on_until_the_task_ends(user: User):
    script = 'echo attempt $TASK_ATTEMPT; [ "$TASK_ATTEMPT" = 3 ]'
    task_id = start(user, script, scheduledAt=in_seconds(1), retry={"maxAttempts": 5, "backoffSeconds": 1})

    *printed, end = follow(user.api, task_id)
    *second, second_end = follow(user.api, task_id, attempt=2)

    assert [(sent.data["attempt"], sent.data["text"]) for sent in printed] == [
        (number, f"attempt {number}\n") for number in (1, 2, 3)
    ]
    assert [sent.id for sent in printed] == sorted({int(str(sent.id)) for sent in printed})
    assert (end.data["status"], end.data["attempt"]) == ("completed", 3)
    assert [sent.data["text"] for sent in second] == ["attempt 2\n"]
    assert (second_end.data["status"], second_end.data["reason"]) == ("failed", "exit_nonzero")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"follow": "perhaps"}, "follow"),
        ({"timestamps": "yes!"}, "timestamps"),
        ({"stream": "stdin"}, "stream"),
        ({"tail": "-3"}, "tail"),
        ({"tail": "many"}, "tail"),
        ({"attempt": "0"}, "attempt"),
        ({"since": "now"}, "since"),
    ],
    ids=str,
)
def test_a_query_that_means_nothing_is_refused(user: User, query: dict[str, str], field: str):
    task_id = start(user, "true")

    problem = expect_problem(user.api.get(f"/api/tasks/{task_id}/logs", params=query), 422)

    assert list(problem["errors"]) == [field]


def test_output_is_for_who_sees_the_task(user: User, stranger: User, admin: User, anyone: Api):
    task_id = start(user, "echo mine")
    user.api.wait_for(task_id, "completed")
    path = f"/api/tasks/{task_id}/logs?follow=true"

    expect_problem(stranger.api.get(path), 404)
    expect_problem(anyone.get(path), 401)
    expect_problem(user.api.get("/api/tasks/00000000-0000-4000-8000-000000000000/logs?follow=true"), 404)
    expect_problem(user.api.get(f"{path}&attempt=2"), 404)
    assert read_text(follow(admin.api, task_id)) == "mine\n"


def test_past_the_cap_there_is_a_mark_and_the_run_goes_on(user: User):
    task_id = start(user, "head -c 6291456 /dev/zero | tr '\\0' x; echo; echo the end")

    task = user.api.wait_for(task_id, "completed")

    assert user.api.read_logs(task_id) == b"x" * CAP + MARK
    assert task["result"].endswith("x\nthe end\n")
    followed = read_text(follow(user.api, task_id))
    assert followed.encode() == b"x" * CAP + MARK


def test_bytes_that_are_no_text_are_in_the_download_and_in_the_stream(user: User):
    octal = "".join(f"\\{number:03o}" for number in range(256))
    task_id = start(user, f"printf '{octal}'; printf '\\033[31mred\\033[0m'")
    user.api.wait_for(task_id, "completed")

    plain = user.api.read_logs(task_id)
    response = user.api.get(f"/api/tasks/{task_id}/logs?follow=true")
    exact = b"".join(
        base64.b64decode(sent.data["base64"]) if "base64" in sent.data else sent.data["text"].encode()
        for sent in follow(user.api, task_id)
        if sent.name == "message"
    )

    assert plain == bytes(range(256)) + b"\x1b[31mred\x1b[0m"
    assert exact == plain
    assert b"\x1b" not in response.content
    assert max(response.content) < 0x80


def test_lines_may_have_their_times_and_only_the_last_ones_be_wanted(user: User):
    task_id = start(user, "for i in 1 2 3; do echo line $i; done")
    user.api.wait_for(task_id, "completed")

    stamped = user.api.read_logs(task_id, timestamps="true", tail=2).decode().splitlines()

    assert [line.partition(" ")[2] for line in stamped] == ["line 2", "line 3"]
    assert all(line.partition(" ")[0].endswith("Z") for line in stamped)
    assert read_text(follow(user.api, task_id, tail=1)) == "line 3\n"
    assert read_text(follow(user.api, task_id, stream="stderr")) == ""


def test_a_hundred_followers_of_one_run_lose_nothing_and_others_are_answered(user: User):
    # A megabyte of numbered lines, over about two seconds.
    script = "j=0; while [ $j -lt 20 ]; do seq $((j*8000)) $((j*8000+7999)); sleep 0.05; j=$((j+1)); done"
    task_id = start(user, script, scheduledAt=in_seconds(3))
    texts: list[str] = []
    threads = [
        threading.Thread(target=lambda: texts.append(read_text(follow(user.api, task_id)))) for _ in range(100)
    ]
    for thread in threads:
        thread.start()

    while any(thread.is_alive() for thread in threads):
        assert user.api.get_task(task_id)["id"] == task_id
        for thread in threads:
            thread.join(0.01)

    assert len(texts) == 100
    assert set(texts) == {"".join(f"{number}\n" for number in range(160_000))}


def test_a_stream_ends_with_its_session_and_does_not_come_back(url: str):
    user = sign_up(url)
    task_id = start(user, "sleep 600", stopGraceSeconds=0)
    stream = Stream(user.api, task_id)

    expect(user.api.post("/api/users/logout"), 204)
    events = list(stream)

    assert events == [], "without an end: the task goes on"
    expect_problem(user.api.get(f"/api/tasks/{task_id}/logs?follow=true"), 401)
    again = expect(Api(url).post("/api/users/login", {"email": user.email, "password": user.password}), 200)
    cancel(Api(url, again["token"]), task_id)


def test_a_personal_token_follows_for_longer_than_what_it_is_traded_for(user: User):
    created = expect(user.api.post("/api/users/me/tokens", {"name": "follows"}), 201)
    task_id = start(user, "echo a; sleep 8; echo b")

    text = read_text(iter(Stream(Api(user.api.url, created["token"]), task_id)))

    assert text == "a\nb\n"


@pytest.mark.parametrize("service", ["scheduler-logs", "scheduler", "gateway"])
def test_nothing_is_lost_when_a_part_on_the_way_is_restarted(stack: Stack, user: User, service: str):
    task_id = start(user, "i=0; while [ $i -lt 60 ]; do echo $i; i=$((i+1)); sleep 0.1; done")
    events = follow(user.api, task_id)
    first = next(events)

    stack.restart(service)
    text = first.data["text"] + read_text(events)

    assert text == "".join(f"{number}\n" for number in range(60))
    stack.wait_until_ready()


def test_without_redis_output_is_followed_all_the_same(stack: Stack, user: User):
    (redis,) = stack.containers("redis")
    redis.stop(timeout=10)
    try:
        task_id = start(user, "for i in 1 2 3; do echo $i; sleep 0.5; done")
        assert read_text(follow(user.api, task_id)) == "1\n2\n3\n"
    finally:
        redis.start()
    stack.wait_until_ready()


def test_a_part_that_stops_ends_its_streams_in_order(stack: Stack, user: User):
    task_id = start(user, "sleep 600", stopGraceSeconds=0)
    streams = [Stream(user.api, task_id) for _ in range(5)]

    stack.restart("scheduler-logs")

    assert [list(stream) for stream in streams] == [[]] * 5, "neither an end nor a broken connection"
    stack.wait_until_ready()
    cancel(user.api, task_id)
    wait_until(lambda: user.api.get_task(task_id)["status"] == "cancelled", what="it was cancelled")
