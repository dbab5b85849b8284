"""Hints over a real Redis, and without one."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator

import pytest

from libs.common.hints import HintListener, HintSender

pytestmark = pytest.mark.component

WAIT_SECONDS = 10.0


@pytest.fixture
def heard(fresh_redis_url: str) -> Iterator[queue.Queue[str]]:
    """What a listener to the channel `here` hears, from its being connected on."""
    texts: queue.Queue[str] = queue.Queue()
    listener = HintListener(fresh_redis_url, "here", texts.put)
    listener.start()
    assert texts.get(timeout=WAIT_SECONDS) == "", "a new connection is a hint itself"
    yield texts
    listener.close()


@pytest.fixture
def sender(fresh_redis_url: str) -> Iterator[HintSender]:
    sender = HintSender(fresh_redis_url)
    yield sender
    sender.close()


def test_a_hint_arrives_with_its_text(heard: queue.Queue[str], sender: HintSender):
    sender.send("here", "executor-ü")

    assert heard.get(timeout=WAIT_SECONDS) == "executor-ü"


def test_hints_of_other_channels_are_not_heard(heard: queue.Queue[str], sender: HintSender):
    sender.send("elsewhere", "one")
    sender.send("here", "two")

    assert heard.get(timeout=WAIT_SECONDS) == "two"
    assert heard.empty()


def test_every_text_is_sent(heard: queue.Queue[str], sender: HintSender):
    texts = {f"executor-{number}" for number in range(20)}

    for text in texts:
        sender.send("here", text)

    assert {heard.get(timeout=WAIT_SECONDS) for _ in texts} == texts


def test_without_redis_nobody_waits_and_the_listener_says_so():
    url = "redis://127.0.0.1:1/0"
    sender, listener = HintSender(url), HintListener(url, "here", lambda _: None)
    listener.start()

    begun = time.monotonic()
    for number in range(100):
        sender.send("here", str(number))
    elapsed = time.monotonic() - begun

    assert elapsed < 0.5
    with pytest.raises(ConnectionError):
        listener.check()
    listener.close()
    sender.close()
