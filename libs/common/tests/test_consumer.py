"""The consumer against a real broker: places, early acknowledgements, reconnects, dead letters."""

from __future__ import annotations

import queue
import threading
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import pika
import pytest

from libs.common.config import Secret
from libs.common.consumer import EARLY_ACK_SECONDS, Consumer, Delivery
from libs.common.topology import (
    DEAD_QUEUE,
    REQUEST_ID_HEADER,
    RUNS_QUEUE,
    declare_run_queue,
    declare_topology,
    run_queue,
)
from tests.polling import wait_until

pytestmark = pytest.mark.component

WAIT_SECONDS = 15.0


class Harness:
    """A publisher, and consumers whose deliveries land in a queue each."""

    def __init__(self, broker_url: str) -> None:
        self.broker_url = broker_url
        self._connection = pika.BlockingConnection(pika.URLParameters(broker_url))
        self.channel: Any = self._connection.channel()
        declare_topology(self.channel)
        self.channel.queue_purge(RUNS_QUEUE)
        self.channel.queue_purge(DEAD_QUEUE)
        self._running: list[tuple[Consumer, threading.Thread]] = []

    def publish(self, *bodies: bytes, request_id: str = "request-1", queue: str = RUNS_QUEUE) -> None:
        for body in bodies:
            properties = pika.BasicProperties(delivery_mode=2, headers={REQUEST_ID_HEADER: request_id})
            self.channel.basic_publish("", queue, body, properties)

    def consume(
        self, capacity: int, *, queues: Sequence[str] = (RUNS_QUEUE,)
    ) -> tuple[Consumer, queue.Queue[Delivery]]:
        deliveries: queue.Queue[Delivery] = queue.Queue()
        consumer = Consumer(
            name=f"test {uuid.uuid4().hex[:6]}",
            broker_url=Secret(self.broker_url),
            queues=queues,
            on_delivery=deliveries.put,
        )
        consumer.set_capacity(capacity)
        thread = threading.Thread(target=consumer.run, daemon=True)
        thread.start()
        self._running.append((consumer, thread))
        return consumer, deliveries

    def ready(self, name: str = RUNS_QUEUE) -> int:
        """Messages that wait in the queue, in nobody's hand."""
        count: int = self.channel.queue_declare(name, passive=True).method.message_count
        return count

    def tags(self) -> int:
        count: int = self.channel.queue_declare(RUNS_QUEUE, passive=True).method.consumer_count
        return count

    def close(self) -> None:
        for consumer, thread in self._running:
            consumer.end()
            thread.join(10)
            assert not thread.is_alive()
        self._connection.close()


@pytest.fixture
def harness(broker_url: str) -> Iterator[Harness]:
    harness = Harness(broker_url)
    yield harness
    harness.close()


def take(deliveries: queue.Queue[Delivery]) -> Delivery:
    return deliveries.get(timeout=WAIT_SECONDS)


def nothing_comes(deliveries: queue.Queue[Delivery], seconds: float = 0.4) -> bool:
    try:
        deliveries.get(timeout=seconds)
    except queue.Empty:
        return True
    return False


def test_no_more_messages_are_in_hand_than_there_are_places(harness: Harness):
    consumer, deliveries = harness.consume(2)
    harness.publish(b"1", b"2", b"3")

    first, second = take(deliveries), take(deliveries)
    assert nothing_comes(deliveries)
    consumer.done(first)

    assert take(deliveries).body == b"3"
    assert second.body == b"2"
    assert second.request_id == "request-1"


def test_a_message_that_is_done_is_gone(harness: Harness):
    consumer, deliveries = harness.consume(1)
    harness.publish(b"1")

    consumer.done(take(deliveries))
    consumer.end()

    wait_until(lambda: harness.tags() == 0)
    assert harness.ready() == 0


def test_a_rejected_message_is_a_dead_letter(harness: Harness):
    consumer, deliveries = harness.consume(1)
    harness.publish(b"unreadable", b"next")

    consumer.reject(take(deliveries))

    assert take(deliveries).body == b"next"
    wait_until(lambda: harness.ready(DEAD_QUEUE) == 1)


def test_a_long_message_is_acknowledged_early_and_its_place_stays_taken(harness: Harness):
    consumer, deliveries = harness.consume(1)
    harness.publish(b"long", b"next")
    delivery = take(deliveries)

    delivery.taken = True
    wait_until(lambda: harness.tags() == 0)

    assert nothing_comes(deliveries)
    # A message that is acknowledged isn't delivered again when its consumer dies.
    consumer.done(delivery)
    assert take(deliveries).body == b"next"


def test_a_message_that_is_not_taken_yet_stays_unacknowledged(harness: Harness):
    consumer, deliveries = harness.consume(1)
    harness.publish(b"1")
    take(deliveries)

    assert nothing_comes(deliveries, EARLY_ACK_SECONDS + 0.3)
    consumer.end()

    wait_until(lambda: harness.ready() == 1)


def test_an_acknowledged_message_is_not_delivered_again_to_anybody(harness: Harness):
    consumer, deliveries = harness.consume(1)
    harness.publish(b"1")
    take(deliveries).taken = True
    # Its place is given up before it is acknowledged.
    wait_until(lambda: harness.tags() == 0)

    consumer.end()

    wait_until(lambda: harness.tags() == 0)
    assert harness.ready() == 0


def test_what_is_done_is_acknowledged_and_nothing_else_whatever_the_order(harness: Harness):
    consumer, deliveries = harness.consume(6)
    harness.publish(b"0", b"1", b"2", b"3", b"4", b"5")
    in_hand = [take(deliveries) for _ in range(6)]

    for number in (4, 1, 0, 2):
        consumer.done(in_hand[number])
    harness.publish(b"next")
    assert take(deliveries).body == b"next"
    cut(consumer)

    again = sorted(take(deliveries).body for _ in range(3))
    assert again == [b"3", b"5", b"next"]
    assert nothing_comes(deliveries)


def test_without_capacity_nothing_comes_until_there_is_some(harness: Harness):
    consumer, deliveries = harness.consume(0)
    harness.publish(b"1")
    wait_until(lambda: consumer.connected)
    assert nothing_comes(deliveries)

    consumer.set_capacity(1)
    delivery = take(deliveries)
    consumer.set_capacity(0)
    consumer.done(delivery)
    harness.publish(b"2")

    assert nothing_comes(deliveries)
    assert harness.ready() == 1


def test_a_smaller_capacity_takes_no_message_back(harness: Harness):
    consumer, deliveries = harness.consume(3)
    harness.publish(b"1")
    delivery = take(deliveries)

    consumer.set_capacity(1)
    wait_until(lambda: harness.tags() == 1)
    harness.publish(b"2")
    assert nothing_comes(deliveries)
    consumer.done(delivery)

    assert take(deliveries).body == b"2"


def test_messages_are_shared_out_by_free_places(harness: Harness):
    _, large = harness.consume(6)
    _, small = harness.consume(2)
    wait_until(lambda: harness.tags() == 8)

    harness.publish(*(str(number).encode() for number in range(8)))

    wait_until(lambda: large.qsize() == 6 and small.qsize() == 2)


def test_after_a_lost_connection_places_in_use_stay_in_use(harness: Harness):
    consumer, deliveries = harness.consume(2)
    harness.publish(b"long")
    delivery = take(deliveries)
    delivery.taken = True
    wait_until(lambda: harness.tags() == 1)

    cut(consumer)
    harness.publish(b"1", b"2")

    assert take(deliveries).body == b"1"
    assert nothing_comes(deliveries)
    consumer.done(delivery)
    assert take(deliveries).body == b"2"


def test_an_unacknowledged_message_comes_again_after_a_lost_connection(harness: Harness):
    consumer, deliveries = harness.consume(2)
    harness.publish(b"1")
    first = take(deliveries)

    cut(consumer)

    again = take(deliveries)
    assert again.body == first.body
    assert again.redelivered
    consumer.done(first)
    consumer.done(again)
    harness.publish(b"2", b"3")
    assert {take(deliveries).body, take(deliveries).body} == {b"2", b"3"}


def test_a_queue_that_vanishes_is_declared_again(harness: Harness):
    _, deliveries = harness.consume(1)
    wait_until(lambda: harness.tags() == 1)

    harness.channel.queue_delete(RUNS_QUEUE)
    declare_topology(harness.channel)
    harness.publish(b"1")

    assert take(deliveries).body == b"1"


def test_a_broker_that_is_away_is_asked_again():
    consumer = Consumer(
        name="test", broker_url=Secret("amqp://127.0.0.1:9/"), queues=[RUNS_QUEUE], on_delivery=lambda _: None
    )
    thread = threading.Thread(target=consumer.run, daemon=True)
    thread.start()

    assert not consumer.connected
    consumer.end()

    thread.join(10)
    assert not thread.is_alive()


def cut(consumer: Consumer) -> None:
    """Break the connection as a network does, without a word to the broker."""
    connection: Any = consumer._connection
    connection._impl._transport._sock.shutdown(2)


POOL_QUEUE = run_queue("test-pool")


@pytest.fixture
def pools(harness: Harness) -> Harness:
    declare_run_queue(harness.channel, POOL_QUEUE)
    harness.channel.queue_purge(POOL_QUEUE)
    return harness


def test_of_two_queues_no_more_comes_than_there_is_room_for_and_nothing_waits_while_there_is(pools: Harness):
    bodies = [b"%d" % number for number in range(6)]
    pools.publish(*bodies[:3])
    pools.publish(*bodies[3:], queue=POOL_QUEUE)
    consumer, deliveries = pools.consume(2, queues=[RUNS_QUEUE, POOL_QUEUE])

    seen = []
    for _ in range(2):
        in_hand = [take(deliveries), take(deliveries)]
        assert nothing_comes(deliveries)
        seen += [delivery.body for delivery in in_hand]
        for delivery in in_hand:
            consumer.done(delivery)
    seen += [take(deliveries).body, take(deliveries).body]

    assert sorted(seen) == bodies


def test_a_place_that_one_queue_leaves_empty_is_the_other_ones(pools: Harness):
    _, deliveries = pools.consume(3, queues=[RUNS_QUEUE, POOL_QUEUE])
    pools.publish(b"1", b"2", b"3", b"4", queue=POOL_QUEUE)

    assert {take(deliveries).body for _ in range(3)} == {b"1", b"2", b"3"}
    assert nothing_comes(deliveries)
    assert pools.ready(POOL_QUEUE) == 1


def test_what_is_given_back_goes_to_another(harness: Harness):
    harness.publish(b"1")
    leaver, its_deliveries = harness.consume(1)
    delivery = take(its_deliveries)
    _, other_deliveries = harness.consume(1)

    leaver.set_capacity(0)
    leaver.give_back(delivery)

    assert take(other_deliveries).body == b"1"
    assert nothing_comes(its_deliveries)
