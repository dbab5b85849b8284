"""Output read and followed over a real database, while an executor prints."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from libs.common.errors import TooManyRequests
from services.scheduler.log_events import Position
from services.scheduler.log_follow import FollowLimits, Follows, Wanted

pytestmark = pytest.mark.component


@dataclass(frozen=True, slots=True)
class Sent:
    """One server-sent event."""

    name: str
    id: int | None
    data: Any


class Stream:
    """A stream as a client reads it, event by event."""

    def __init__(self, answer) -> None:
        assert answer.status_code == 200, answer.json
        assert answer.headers["Content-Type"] == "text/event-stream"
        self._answer = answer
        self._events = self._parse(answer.iter_encoded())
        self.keep_alives = 0

    def __iter__(self) -> Iterator[Sent]:
        return self._events

    def __next__(self) -> Sent:
        return next(self._events)

    def close(self) -> None:
        self._answer.close()

    def read_text(self, until: str) -> str:
        """Texts put together, up to and with the one that ends so."""
        text = ""
        while not text.endswith(until):
            text += next(self).data["text"]
        return text

    def read_rest(self) -> tuple[str, Sent]:
        """All texts, and the last event."""
        events = list(self)
        return "".join(event.data["text"] for event in events[:-1]), events[-1]

    def _parse(self, pieces) -> Iterator[Sent]:
        rest = b""
        for piece in pieces:
            *blocks, rest = (rest + piece).split(b"\n\n")
            for block in blocks:
                fields = dict(line.split(": ", 1) for line in block.decode().splitlines())
                if "" in fields:
                    self.keep_alives += 1
                if "data" in fields:
                    sent_id = int(fields["id"]) if "id" in fields else None
                    yield Sent(fields.get("event", "message"), sent_id, json.loads(fields["data"]))


@pytest.fixture
def follow(user):
    streams = []

    def open_stream(task_id: str, *, last_event_id: Any = None, caller=None, **query: Any) -> Stream:
        headers = {"Accept": "text/event-stream"}
        if last_event_id is not None:
            headers["Last-Event-ID"] = str(last_event_id)
        answer = (caller or user)("GET", f"/api/tasks/{task_id}/logs", query_string=query, headers=headers)
        streams.append(Stream(answer))
        return streams[-1]

    yield open_stream

    for stream in streams:
        stream.close()


@pytest.fixture
def running(queue, executor):
    def run(**fields: Any) -> tuple[str, str]:
        task, run_id = queue(**fields)
        executor.claim(run_id)
        executor.start(run_id)
        return task["id"], run_id

    return run


def test_a_stream_brings_what_was_printed_and_what_is_printed_until_the_end(running, executor, follow):
    task_id, run_id = running()
    executor.print(run_id, b"before\n")
    stream = follow(task_id)

    first = next(stream)
    executor.print(run_id, b"while\n", stream="stderr")
    second = next(stream)
    executor.print(run_id, b"last words")
    executor.finish(run_id, exitCode=3, outcome="failed", reason="exit_nonzero")
    third, end = stream

    assert [event.id for event in (first, second, third)] == [0, 1, 2]
    assert [event.data["text"] for event in (first, second, third)] == ["before\n", "while\n", "last words"]
    assert [event.data["stream"] for event in (first, second, third)] == ["stdout", "stderr", "stdout"]
    assert {event.data["attempt"] for event in (first, second, third)} == {1}
    assert end == Sent("end", None, {"status": "failed", "reason": "exit_nonzero", "exitCode": 3, "attempt": 1})


def test_who_comes_before_the_task_runs_waits_for_it(user, dispatcher, publisher, executor, follow):
    task = user.create()
    stream = follow(task["id"])
    dispatcher.run_once()
    run_id = publisher.sent[-1]
    executor.claim(run_id)
    executor.print(run_id, b"at last\n")
    executor.finish(run_id)

    text, end = stream.read_rest()

    assert (text, end.data["status"]) == ("at last\n", "completed")


def test_while_nothing_is_printed_the_stream_is_kept_alive(running, executor, follow):
    task_id, run_id = running()
    stream = follow(task_id)
    threading.Timer(0.5, executor.finish, [run_id]).start()

    _, end = stream.read_rest()

    assert end.name == "end"
    assert stream.keep_alives >= 2


def test_a_stream_that_broke_off_goes_on_behind_the_last_event(running, executor, follow):
    task_id, run_id = running()
    for number in range(10):
        executor.print(run_id, f"{number}\n".encode())
    first = follow(task_id)
    seen = [next(first) for _ in range(4)]
    first.close()
    executor.finish(run_id)

    text, end = follow(task_id, last_event_id=seen[-1].id).read_rest()

    assert "".join(event.data["text"] for event in seen) + text == "".join(f"{n}\n" for n in range(10))
    assert end.name == "end"


def test_behind_the_last_event_there_is_only_the_end(running, executor, follow):
    task_id, run_id = running()
    executor.print(run_id, b"all")
    executor.finish(run_id)

    (end,) = follow(task_id, last_event_id=0)

    assert end.name == "end"


def test_a_character_in_two_chunks_is_whole_also_for_who_comes_in_between(running, executor, follow):
    task_id, run_id = running()
    snowman = "☃".encode()
    executor.print(run_id, b"a" + snowman[:2])
    executor.print(run_id, snowman[2:] + b"b")
    executor.print(run_id, b"\xff" + snowman[:1])
    executor.finish(run_id)

    whole, _ = follow(task_id).read_rest()
    later, _ = follow(task_id, last_event_id=0).read_rest()

    assert whole == "a☃b\ufffd\ufffd"
    assert later == "☃b\ufffd\ufffd"


def test_a_stream_of_one_attempt_ends_with_it_and_one_of_the_task_goes_on(running, executor, dispatcher, follow):
    task_id, run_id = running()
    executor.print(run_id, b"first\n")
    whole, one = follow(task_id), follow(task_id, attempt=1)
    executor.finish(run_id, "lost")
    text, end = one.read_rest()
    assert dispatcher.run_once().dispatched == 1
    second = dispatcher._publisher.sent[-1]
    executor.claim(second)
    executor.print(second, b"second\n")
    executor.finish(second)

    events = list(whole)

    assert (text, end.data["status"], end.data["attempt"]) == ("first\n", "lost", 1)
    assert [(event.data["attempt"], event.data["text"]) for event in events[:-1]] == [
        (1, "first\n"),
        (2, "second\n"),
    ]
    assert events[0].id < events[1].id
    assert events[-1].data["status"] == "completed"
    again = list(follow(task_id, last_event_id=events[0].id))
    assert [event.data.get("text") for event in again] == ["second\n", None]
    assert [event.data.get("text") for event in follow(task_id)] == ["second\n", None], "the last attempt"
    assert [event.data.get("text") for event in follow(task_id, attempt=1)] == ["first\n", None]
    assert [e.name for e in follow(task_id, attempt=1, last_event_id=events[1].id)] == ["end"]
    assert len(list(follow(task_id, attempt=2, last_event_id=events[0].id))) == 2


def test_a_task_that_is_cancelled_or_deleted_before_it_runs_ends_its_streams(user, follow):
    cancelled, deleted = user.create(), user.create()
    streams = follow(cancelled["id"]), follow(deleted["id"])

    user("POST", f"/api/tasks/{cancelled['id']}/cancel")
    user("DELETE", f"/api/tasks/{deleted['id']}")

    ends = [list(stream)[-1] for stream in streams]
    assert [end.data["status"] for end in ends] == ["cancelled", "deleted"]
    assert ends[0].data["attempt"] is None


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"stream": "stderr"}, "b\nd\n"),
        ({"tail": 2}, "c\nd\n"),
        ({"tail": 1, "stream": "stdout"}, "c\n"),
        ({"tail": 0}, ""),
        ({"tail": 100}, "a\nb\nc\nd\n"),
        ({"follow": "true", "tail": 1}, "d\n"),
    ],
    ids=str,
)
def test_a_stream_can_be_of_one_stream_and_of_the_last_lines(running, executor, follow, query, expected):
    task_id, run_id = running()
    executor.print(run_id, b"a\n")
    executor.print(run_id, b"b\n", stream="stderr")
    executor.print(run_id, b"c\n")
    executor.print(run_id, b"d\n", stream="stderr")
    stream = follow(task_id, **query)
    executor.finish(run_id)

    text, _ = stream.read_rest()

    assert text == expected


def test_the_last_lines_of_a_stream_may_begin_inside_a_chunk(running, executor, follow):
    task_id, run_id = running()
    executor.print(run_id, b"one\ntwo\nthr")
    executor.print(run_id, b"ee\nfour\n")
    stream = follow(task_id, tail=2)
    first = next(stream)
    executor.print(run_id, b"five\n")
    executor.finish(run_id)

    text, _ = stream.read_rest()

    assert first.data["text"] + text == "three\nfour\nfive\n"


def test_text_is_byte_for_byte_and_may_have_times(user, running, executor):
    task_id, run_id = running()
    executor.print(run_id, b"\x1b[31mred\x00\xff\n" * 5000)
    executor.print(run_id, b"end")

    def read(**query):
        return user("GET", f"/api/tasks/{task_id}/logs", query_string=query)

    plain = read()
    assert plain.data == b"\x1b[31mred\x00\xff\n" * 5000 + b"end"
    assert plain.headers["Content-Type"] == "text/plain; charset=utf-8"
    lines = read(timestamps="true", tail=3).data.split(b"\n")
    assert [line[27:] for line in lines] == [b" \x1b[31mred\x00\xff", b" \x1b[31mred\x00\xff", b" end"]
    assert lines[0].startswith(b"20")
    assert read(follow="false").data == plain.data


def test_only_who_asks_for_events_gets_a_stream(user, running):
    task_id, _ = running()

    for accept in ("*/*", "text/plain", "text/html,application/json", "text/event-stream;q=0.1,text/plain"):
        answer = user("GET", f"/api/tasks/{task_id}/logs", headers={"Accept": accept})
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8", accept
    text = user("GET", f"/api/tasks/{task_id}/logs?follow=false", headers={"Accept": "text/event-stream"})
    assert text.headers["Content-Type"] == "text/plain; charset=utf-8"
    head = user("HEAD", f"/api/tasks/{task_id}/logs?follow=true")
    assert (head.status_code, head.headers["Content-Type"], head.data) == (200, "text/event-stream", b"")


@pytest.mark.parametrize(
    ("query", "headers", "field"),
    [
        ({"follow": "maybe"}, {}, "follow"),
        ({"timestamps": "2"}, {}, "timestamps"),
        ({"stream": "both,stdout"}, {}, "stream"),
        ({"tail": "-1"}, {}, "tail"),
        ({"attempt": "0"}, {}, "attempt"),
        ({"since": "1"}, {}, "since"),
        ({"follow": "true"}, {"Last-Event-ID": "x"}, "Last-Event-ID"),
        ({"follow": "true"}, {"Last-Event-ID": "-1"}, "Last-Event-ID"),
        ({"follow": "true"}, {"Last-Event-ID": str(5 << 40)}, "Last-Event-ID"),
    ],
    ids=str,
)
def test_a_bad_query_is_422_and_named(user, running, query, headers, field):
    task_id, _ = running()

    answer = user("GET", f"/api/tasks/{task_id}/logs", query_string=query, headers=headers)

    assert answer.status_code == 422
    assert set(answer.json["errors"]) == {field}


def test_an_attempt_that_will_never_be_is_404_and_one_that_may_be_is_waited_for(
    user, other, running, executor, follow
):
    task_id, run_id = running()
    waiting = follow(task_id, attempt=2)
    executor.finish(run_id)

    (end,) = waiting
    late = user("GET", f"/api/tasks/{task_id}/logs?attempt=2&follow=true")
    foreign = other("GET", f"/api/tasks/{task_id}/logs?follow=true")

    assert end.data["status"] == "completed"
    assert (late.status_code, foreign.status_code) == (404, 404)


def test_a_hundred_followers_get_every_byte_however_late_they_come(running, executor, follows, user):
    task_id, run_id = running()
    texts: dict[int, bytes] = {}

    def read(number: int, position: Position) -> None:
        wanted = Wanted(user_id=uuid.UUID(int=number), task_id=uuid.UUID(task_id), position=position)
        stream = follows.open(wanted)
        texts[number] = b"".join(stream)
        stream.close()

    threads = []
    for round_ in range(20):
        executor.print(run_id, f"line {round_} ".encode() + b"x" * 300 + b"\n")
        for each in range(5):
            thread = threading.Thread(target=read, args=(round_ * 5 + each, Position(1, -1)))
            thread.start()
            threads.append(thread)
    executor.finish(run_id)
    for thread in threads:
        thread.join(30)

    assert len(texts) == 100
    for text in texts.values():
        data = [json.loads(line[6:]) for line in text.splitlines() if line.startswith(b"data: ")]
        assert [entry["text"].split()[1] for entry in data[:-1]] == [str(number) for number in range(20)]
        assert data[-1]["status"] == "completed"


def test_who_falls_behind_what_is_kept_reads_on_alone_and_loses_nothing(pool, running, executor):
    task_id, run_id = running()
    limits = FollowLimits(keep_bytes_of_task=2000, page_bytes=200, poll_seconds_without_hints=0.01)
    follows = Follows(pool=pool, limits=limits, has_hints=lambda: False)

    def open_follow(number: int):
        return follows.open(Wanted(user_id=uuid.uuid4(), task_id=uuid.UUID(task_id), position=Position(1, -1)))

    slow, fast = open_follow(1), open_follow(2)
    next(slow)
    for number in range(100):
        executor.print(run_id, f"{number} ".encode() + b"y" * 100)
    executor.finish(run_id)
    fast_text = b"".join(fast)
    slow_text = b"".join(slow)
    fast.close()
    slow.close()

    assert slow_text == fast_text.removeprefix(b"retry: 1000\n\n")
    assert slow_text.count(b"id: ") == 100


def test_one_user_cannot_take_all_streams(pool, running):
    task_id, _ = running()
    follows = Follows(pool=pool, limits=FollowLimits(followers=3, followers_of_user=2), has_hints=lambda: False)
    wanted = Wanted(user_id=uuid.uuid4(), task_id=uuid.UUID(task_id), position=Position(1, -1))
    open_streams = [follows.open(wanted), follows.open(wanted)]

    with pytest.raises(TooManyRequests) as refusal:
        follows.open(wanted)

    assert (refusal.value.status, refusal.value.code) == (429, "too_many_follows")
    for stream in open_streams:
        stream.close()
        stream.close()
    follows.open(wanted).close()


def test_a_process_that_stops_ends_its_streams_without_an_end(running, executor, follows, follow):
    task_id, run_id = running()
    executor.print(run_id, b"so far")
    stream = follow(task_id)
    first = next(stream)

    follows.stop()

    assert first.data["text"] == "so far"
    assert list(stream) == []


def test_who_follows_is_hinted_when_a_task_starts_prints_and_ends(queue, executor, waker):
    task, run_id = queue()
    executor.claim(run_id)
    hints = []

    for step in (executor.start, lambda run_id: executor.print(run_id, b"x"), executor.finish):
        waker.outputs.clear()
        step(run_id)
        hints.append(waker.outputs.copy())
    waker.outputs.clear()
    executor.sync()

    assert hints == [[task["id"]]] * 3
    assert waker.outputs == []


@pytest.mark.parametrize("flag", ["true", "True", "1", ""])
def test_a_flag_is_written_in_several_ways(user, running, executor, flag):
    task_id, run_id = running()
    executor.finish(run_id)

    answer = user("GET", f"/api/tasks/{task_id}/logs", query_string={"follow": flag})

    assert answer.headers["Content-Type"] == "text/event-stream"
    assert b"event: end" in answer.data
