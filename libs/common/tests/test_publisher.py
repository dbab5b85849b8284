"""The publisher against a real broker."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pika
import pytest

from libs.common.messages import RunMessage, decode_run_message
from libs.common.publisher import Outgoing, Publisher
from libs.common.topology import DEAD_QUEUE, REQUEST_ID_HEADER, RUNS_QUEUE, declare_topology

pytestmark = pytest.mark.component


@pytest.fixture
def channel(broker_url) -> Iterator[pika.adapters.blocking_connection.BlockingChannel]:
    """A channel beside the publisher's, over empty queues."""
    connection = pika.BlockingConnection(pika.URLParameters(broker_url))
    channel = connection.channel()
    declare_topology(channel)
    channel.queue_purge(RUNS_QUEUE)
    channel.queue_purge(DEAD_QUEUE)
    yield channel
    connection.close()


@contextmanager
def publishing(url: str) -> Iterator[Publisher]:
    publisher = Publisher(url, name="test", retry_seconds=0.1)
    publisher.start()
    try:
        yield publisher
    finally:
        publisher.close()


def make_messages(count: int) -> list[Outgoing]:
    return [Outgoing(RunMessage(uuid.uuid4(), uuid.uuid4()), f"request-{number}") for number in range(count)]


def take(channel, *, seconds=5.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        method, properties, body = channel.basic_get(RUNS_QUEUE, auto_ack=True)
        if method is not None:
            return properties, body
        time.sleep(0.01)
    raise AssertionError("no message came")


def test_a_batch_is_confirmed_and_arrives_in_order(broker_url, channel):
    messages = make_messages(300)

    with publishing(broker_url) as publisher:
        assert publisher.wait_until_ready(10)
        begun = time.monotonic()
        confirmed = publisher.publish(messages, timeout_seconds=10)
        elapsed = time.monotonic() - begun

    assert confirmed == {message.id for message in messages}
    assert elapsed < 3, "the confirms are waited for together, not one by one"
    for sent in messages:
        properties, body = take(channel)
        assert decode_run_message(body) == sent.message
        assert properties.delivery_mode == 2
        assert properties.headers[REQUEST_ID_HEADER] == sent.request_id


def test_nothing_is_confirmed_without_a_broker():
    with publishing("amqp://127.0.0.1:1/") as publisher:
        assert not publisher.is_ready
        assert publisher.publish(make_messages(1), timeout_seconds=5) == set()
        with pytest.raises(ConnectionError):
            publisher.check()


def test_a_message_whose_queue_is_gone_is_not_confirmed_and_the_queue_comes_back(broker_url, channel):
    with publishing(broker_url) as publisher:
        assert publisher.wait_until_ready(10)
        channel.queue_delete(RUNS_QUEUE)

        assert publisher.publish(make_messages(2), timeout_seconds=5) == set()

        messages = make_messages(2)
        assert publisher.publish(messages, timeout_seconds=5) == {message.id for message in messages}


def test_counting_makes_a_queue_anew_that_is_gone(broker_url, channel):
    with publishing(broker_url) as publisher:
        assert publisher.wait_until_ready(10)
        channel.queue_delete(RUNS_QUEUE)

        assert publisher.count(RUNS_QUEUE, timeout_seconds=5) == 0

        messages = make_messages(2)
        assert publisher.publish(messages, timeout_seconds=5) == {message.id for message in messages}


def test_a_broker_that_has_gone_silent_does_not_count_as_there(broker_url, channel):
    with publishing(broker_url) as publisher:
        assert publisher.wait_until_ready(10)
        assert publisher.answers(timeout_seconds=5)
        link, resumed = publisher._link, threading.Event()
        link._connection.ioloop.add_callback_threadsafe(lambda: resumed.wait(10))  # type: ignore[union-attr]
        link.heard_at = float("-inf")  # type: ignore[union-attr]

        assert publisher.is_ready
        assert not publisher.answers(timeout_seconds=0.1)

        resumed.set()
        assert publisher.answers(timeout_seconds=5)


def test_a_message_that_is_requeued_often_is_never_dropped(broker_url, channel):
    """Since 4.0 the broker's default limit would drop it after 20 deliveries."""
    with publishing(broker_url) as publisher:
        assert publisher.wait_until_ready(10)
        publisher.publish(make_messages(1), timeout_seconds=5)

    for _ in range(40):
        deadline = time.monotonic() + 5
        while (method := channel.basic_get(RUNS_QUEUE)[0]) is None:
            assert time.monotonic() < deadline, "the message is gone"
            time.sleep(0.005)
        channel.basic_nack(method.delivery_tag, requeue=True)

    take(channel)
    assert channel.basic_get(DEAD_QUEUE)[0] is None


def test_a_message_that_is_rejected_becomes_a_dead_letter(broker_url, channel):
    (message,) = make_messages(1)
    with publishing(broker_url) as publisher:
        assert publisher.wait_until_ready(10)
        publisher.publish([message], timeout_seconds=5)

    deadline = time.monotonic() + 5
    while (method := channel.basic_get(RUNS_QUEUE)[0]) is None:
        assert time.monotonic() < deadline
    channel.basic_reject(method.delivery_tag, requeue=False)

    while (dead := channel.basic_get(DEAD_QUEUE, auto_ack=True))[0] is None:
        assert time.monotonic() < deadline + 5
        time.sleep(0.01)
    assert decode_run_message(dead[2]) == message.message


def test_the_connection_comes_back_by_itself(broker_url, channel):
    with publishing(broker_url) as publisher:
        assert publisher.wait_until_ready(10)
        publisher._link._connection.ioloop.add_callback_threadsafe(  # type: ignore[union-attr]
            publisher._link._connection._transport.abort  # type: ignore[union-attr]
        )
        deadline = time.monotonic() + 10
        while publisher.is_ready:
            assert time.monotonic() < deadline
            time.sleep(0.005)

        assert publisher.wait_until_ready(10)
        messages = make_messages(3)
        assert publisher.publish(messages, timeout_seconds=5) == {message.id for message in messages}


def test_the_messages_of_a_queue_are_counted(broker_url, channel):
    with publishing(broker_url) as publisher:
        assert publisher.wait_until_ready(10)
        assert publisher.count(RUNS_QUEUE, timeout_seconds=5) == 0
        publisher.publish(make_messages(3), timeout_seconds=5)

        assert publisher.count(RUNS_QUEUE, timeout_seconds=5) == 3


def test_nothing_is_counted_without_a_broker():
    with publishing("amqp://127.0.0.1:1/") as publisher:
        assert publisher.count(RUNS_QUEUE, timeout_seconds=5) is None
