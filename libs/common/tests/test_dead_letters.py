"""Dead letters on a real broker: looked at as often as one likes, and put back."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pika
import pytest

from libs.common.clock import utc_now
from libs.common.config import Secret
from libs.common.dead_letters import (
    SHOWN_CHARACTERS,
    DeadLetter,
    count_dead_letters,
    format_dead_letter,
    list_dead_letters,
    main,
    open_channel,
    replay_dead_letters,
)
from libs.common.messages import RunMessage
from libs.common.topology import DEAD_QUEUE, REQUEST_ID_HEADER, RUNS_QUEUE

READABLE = RunMessage(run_id=uuid.uuid4(), task_id=uuid.uuid4()).encode()


def make_letter(**changes):
    values: dict[str, Any] = {
        "body": b"{}",
        "request_id": "request-1",
        "died_at": datetime(2027, 1, 1, tzinfo=UTC),
        "problem": "v",
    }
    return DeadLetter(**values | changes)


def test_a_letter_is_shown_with_when_whose_and_why():
    text = format_dead_letter(make_letter(problem="version 9"))

    assert text == "2027-01-01T00:00:00.000000Z  request request-1  unreadable: 'version 9'\n    {}"


def test_what_a_letter_holds_never_reaches_the_terminal_as_it_is():
    text = format_dead_letter(make_letter(body=b"\x1b[2J\x00\xff", request_id="\x1b]0;x", problem="\x1b[2J"))

    assert text.replace("\n", "").isprintable()


def test_a_long_letter_is_cut():
    text = format_dead_letter(make_letter(body=b"x" * (SHOWN_CHARACTERS + 7)))

    assert text.endswith("x… 7 bytes more")


@pytest.mark.component
def test_a_broker_that_is_away_is_one_line_on_stderr(monkeypatch, capsys):
    monkeypatch.setenv("BROKER_URL", "amqp://127.0.0.1:1/")

    assert main([]) == 1

    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.fixture
def channel(broker_url):
    with open_channel(Secret(broker_url)) as opened:
        opened.queue_purge(RUNS_QUEUE)
        opened.queue_purge(DEAD_QUEUE)
        yield opened


def kill(channel, *bodies):
    """Have them rejected, as a consumer does that can't read them."""
    for body in bodies:
        headers = {REQUEST_ID_HEADER: "request-1"}
        channel.basic_publish("", RUNS_QUEUE, body, pika.BasicProperties(delivery_mode=2, headers=headers))
        channel.basic_reject(get(channel, RUNS_QUEUE)[0].delivery_tag, requeue=False)
    wait_for(lambda: count_dead_letters(channel) == len(bodies))


def get(channel, queue):
    message = None

    def take():
        nonlocal message
        message = channel.basic_get(queue)
        return message[0] is not None

    wait_for(take)
    return message


def wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


@pytest.mark.component
def test_dead_letters_are_listed_oldest_first_and_stay(channel):
    kill(channel, b"{}", b'{"v": 9}', READABLE)

    found = list_dead_letters(channel)

    assert [letter.body for letter in found] == [b"{}", b'{"v": 9}', READABLE]
    assert [letter.problem for letter in found] == ["KeyError: 'v'", "version 9", None]
    assert {letter.request_id for letter in found} == {"request-1"}
    for letter in found:
        assert letter.died_at is not None
        assert abs(letter.died_at - utc_now()) < timedelta(minutes=1)
    wait_for(lambda: count_dead_letters(channel) == 3)


@pytest.mark.component
def test_looking_is_bounded(channel):
    kill(channel, b"1", b"2", b"3")

    assert [letter.body for letter in list_dead_letters(channel, limit=2)] == [b"1", b"2"]


@pytest.mark.component
def test_a_letter_may_be_looked_at_any_number_of_times(channel):
    """The broker drops a message of a quorum queue at its 21st delivery."""
    kill(channel, b"{}")

    for _ in range(45):
        wait_for(lambda: count_dead_letters(channel) == 1)
        (letter,) = list_dead_letters(channel)

    assert (letter.body, letter.request_id) == (b"{}", "request-1")
    assert letter.died_at is not None


@pytest.mark.component
def test_replayed_letters_are_on_the_runs_queue_once(channel):
    kill(channel, READABLE, b"{}")

    assert replay_dead_letters(channel) == 2

    for body in (READABLE, b"{}"):
        _, properties, found = get(channel, RUNS_QUEUE)
        assert found == body
        assert properties.delivery_mode == 2
        assert properties.headers == {REQUEST_ID_HEADER: "request-1"}
    assert channel.basic_get(RUNS_QUEUE)[0] is None
    assert count_dead_letters(channel) == 0


@pytest.mark.component
def test_the_command_shows_and_replays(broker_url, channel, monkeypatch, capsys):
    monkeypatch.setenv("BROKER_URL", broker_url)
    kill(channel, READABLE)

    assert main([]) == 0
    shown = capsys.readouterr().out
    assert main(["--replay"]) == 0
    replayed = capsys.readouterr().out
    assert main([]) == 0

    assert shown.splitlines()[0] == f"1 dead letter in {DEAD_QUEUE}"
    assert "readable by this version" in shown
    assert replayed == "put back: 1\n"
    assert capsys.readouterr().out == f"0 dead letters in {DEAD_QUEUE}\n"
