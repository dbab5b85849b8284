"""Takes messages off one or more queues, never more at a time than the owner has room for.

One thread, one connection, one channel (pika isn't safe for threads). Each place for a message is a consumer tag
of its own with a prefetch of one, so the broker shares messages out by free places. A message that takes long is
acknowledged early, after its tag was cancelled: the broker then delivers nothing to a place that is busy. With
several queues each of them is offered every free place, and whichever delivers first has it.
"""

from __future__ import annotations

import contextlib
import functools
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pika
import pika.exceptions
import structlog

from libs.common.config import Secret
from libs.common.topology import REQUEST_ID_HEADER, declare_run_queue, declare_topology

log = structlog.get_logger()

# After two to three of these without a word the broker gives what an executor has in hand to another: in less than
# 20 s, as docs/task-model.md says of a run that was delivered and not claimed.
HEARTBEAT_SECONDS = 6
BLOCKED_SECONDS = 30.0
EARLY_ACK_SECONDS = 1.0
WAIT_SECONDS = 30.0
FIRST_BACKOFF_SECONDS = 0.3
LAST_BACKOFF_SECONDS = 5.0


class ConsumingEnded(Exception):
    """The broker took the channel or a tag away while the connection stayed."""


@dataclass(slots=True, eq=False)
class Delivery:
    """A message in hand. `taken` is set by its owner once the broker needn't deliver it again to anybody."""

    body: bytes
    request_id: str | None
    redelivered: bool
    tag: str
    queue: str
    delivery_tag: int
    taken: bool = False


class Consumer:
    """`run` is the thread's loop. `set_capacity`, `done`, `reject` and `give_back` are for any thread.

    `capacity` is how many messages may be in hand at a time, also across reconnects. `on_delivery` is called in
    the consumer's thread and must not block.
    """

    def __init__(
        self, *, name: str, broker_url: Secret, queues: Sequence[str], on_delivery: Callable[[Delivery], None]
    ) -> None:
        self._name = name
        self._broker_url = broker_url
        self._queues = queues
        self._on_delivery = on_delivery
        self._connection: pika.BlockingConnection | None = None
        self._channel: Any = None
        self._capacity = 0
        # All that is in hand, also from tags and connections now gone.
        self._in_hand: set[Delivery] = set()
        # Of this connection: live tags with a message in hand, those of each queue without one, and what isn't
        # acknowledged, in the broker's order.
        self._busy: set[str] = set()
        self._idle: dict[str, set[str]] = {queue: set() for queue in queues}
        self._unacked: dict[int, Delivery] = {}
        # Delivery tags that `_act` acknowledges when it has done all else.
        self._accepted: list[int] = []
        # When to look whether a message may be acknowledged early.
        self._early: deque[tuple[float, Delivery]] = deque()
        self._early_timer: object = None
        self._actions: deque[Callable[[], None]] = deque()
        # The connection that was asked to call `_act`, and hasn't yet.
        self._asked: pika.BlockingConnection | None = None
        self._ended = threading.Event()

    @property
    def connected(self) -> bool:
        connection = self._connection
        return connection is not None and connection.is_open and self._channel is not None

    def set_capacity(self, capacity: int) -> None:
        """How many messages may be in hand; with 0 no more come, and those in hand stay."""
        self._capacity = capacity
        self._call(_nothing)

    def done(self, delivery: Delivery) -> None:
        """The place is free again; acknowledges the message if that hasn't happened."""
        self._call(functools.partial(self._finish, delivery, self._accept))

    def reject(self, delivery: Delivery) -> None:
        """Nobody can use this message: into the dead letters with it. The place is free again."""
        self._call(functools.partial(self._finish, delivery, self._reject))

    def give_back(self, delivery: Delivery) -> None:
        """Somebody else shall have it. The place is free again: take it away first, or it may come back here."""
        self._call(functools.partial(self._finish, delivery, self._requeue))

    def end(self) -> None:
        """Close the connection and end the loop. What isn't acknowledged, the broker delivers to another."""
        self._ended.set()
        self._call(_nothing)

    def run(self) -> None:
        """Consume for ever; a broker that is away is asked again with growing pauses."""
        pause = FIRST_BACKOFF_SECONDS
        while not self._ended.is_set():
            began = time.monotonic()
            try:
                self._consume()
            except (pika.exceptions.AMQPError, ConsumingEnded, OSError) as error:
                log.warning("broker_connection_lost", error=f"{type(error).__name__}: {error}"[:300])
            except Exception:
                log.exception("consumer_broken")
            finally:
                self._disconnect()
            if time.monotonic() - began > LAST_BACKOFF_SECONDS:
                pause = FIRST_BACKOFF_SECONDS
            self._ended.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311  Only spreads load.
            pause = min(LAST_BACKOFF_SECONDS, pause * 2)

    def _consume(self) -> None:
        connection = pika.BlockingConnection(self._parameters())
        channel = connection.channel()
        declare_topology(channel)
        for queue in self._queues:
            declare_run_queue(channel, queue)
        channel.basic_qos(prefetch_count=1)
        channel.add_on_cancel_callback(_raise_cancelled)
        self._connection, self._channel = connection, channel
        log.info("broker_connected", queues=list(self._queues))
        self._act()
        while not self._ended.is_set():
            connection.process_data_events(time_limit=WAIT_SECONDS)
            if not channel.is_open:
                raise ConsumingEnded("the broker closed the channel")
        connection.close()

    def _parameters(self) -> pika.URLParameters:
        parameters = pika.URLParameters(self._broker_url.reveal())
        parameters.heartbeat = HEARTBEAT_SECONDS
        parameters.blocked_connection_timeout = BLOCKED_SECONDS
        parameters.socket_timeout = 5.0
        parameters.stack_timeout = 10.0
        parameters.client_properties = {"connection_name": self._name}
        return parameters

    def _disconnect(self) -> None:
        """Tags die with their channel; what is in hand goes on, and its acknowledgement is nobody's business."""
        connection, self._connection, self._channel = self._connection, None, None
        self._busy.clear()
        for idle in self._idle.values():
            idle.clear()
        self._unacked.clear()
        self._accepted.clear()
        self._early.clear()
        self._early_timer = None
        if connection is not None and connection.is_open:
            try:
                connection.close()
            except (pika.exceptions.AMQPError, OSError):
                log.debug("broker_close_failed")

    def _call(self, action: Callable[[], None]) -> None:
        """Do it in the consumer's thread: now when connected, else after the next connect."""
        # Kept here and not with pika: what a dying connection was asked to call back is lost with it.
        self._actions.append(action)
        connection = self._connection
        # Once for all that comes up until then: waking the thread costs more than the action.
        if connection is not None and self._asked is not connection:
            self._asked = connection
            with contextlib.suppress(pika.exceptions.ConnectionWrongStateError):
                connection.add_callback_threadsafe(self._act)

    def _act(self) -> None:
        # Before the actions: what is put there from now on may come too late for this call.
        self._asked = None
        while self._actions:
            self._actions.popleft()()
        self._acknowledge()
        self._balance()

    def _balance(self) -> None:
        """Have as many tags as there is room: one for each message that may still come, or is unacknowledged."""
        if self._channel is None:
            return
        free = self._count_free()
        for queue, idle in self._idle.items():
            while len(idle) > free:
                # What the broker has sent to it meanwhile, pika gives back.
                self._channel.basic_cancel(idle.pop())
            for _ in range(free - len(idle)):
                tag = self._channel.basic_consume(queue, functools.partial(self._receive, queue))
                if tag not in self._busy:
                    idle.add(tag)

    def _count_free(self) -> int:
        """How many more messages may come. One that is in hand counts, also when its tag is gone."""
        return max(self._capacity - len(self._in_hand), 0)

    def _receive(self, queue: str, _channel: Any, method: Any, properties: Any, body: bytes) -> None:
        headers = properties.headers or {}
        delivery = Delivery(
            body=body,
            request_id=headers.get(REQUEST_ID_HEADER),
            redelivered=method.redelivered,
            tag=method.consumer_tag,
            queue=queue,
            delivery_tag=method.delivery_tag,
        )
        self._idle[queue].discard(delivery.tag)
        self._busy.add(delivery.tag)
        self._in_hand.add(delivery)
        self._unacked[delivery.delivery_tag] = delivery
        if len(self._queues) > 1:
            # The others have one place fewer.
            self._balance()
        self._check_later(delivery)
        self._on_delivery(delivery)

    def _is_unacked(self, delivery: Delivery) -> bool:
        """Whether this connection has it to acknowledge: the numbers begin anew with each."""
        return self._unacked.get(delivery.delivery_tag) is delivery

    def _check_later(self, delivery: Delivery) -> None:
        self._early.append((time.monotonic() + EARLY_ACK_SECONDS, delivery))
        if self._early_timer is None:
            self._set_early_timer(EARLY_ACK_SECONDS)

    def _set_early_timer(self, seconds: float) -> None:
        if self._connection is not None:
            self._early_timer = self._connection.call_later(seconds, self._ack_early)

    def _ack_early(self) -> None:
        """Acknowledge what is taken and takes long; one timer for all, since most have ended by their time."""
        self._early_timer = None
        now = time.monotonic()
        while self._early and (self._early[0][0] <= now or not self._is_unacked(self._early[0][1])):
            _, delivery = self._early.popleft()
            if not self._is_unacked(delivery):
                continue
            if not delivery.taken:
                self._early.append((now + EARLY_ACK_SECONDS, delivery))
                continue
            # Cancel first: on one channel the broker does both in this order, and never delivers to a busy place.
            self._give_up_place(delivery)
            del self._unacked[delivery.delivery_tag]
            self._channel.basic_ack(delivery.delivery_tag)
        if self._early:
            self._set_early_timer(self._early[0][0] - now)

    def _finish(self, delivery: Delivery, settle: Callable[[int], None]) -> None:
        if delivery not in self._in_hand:
            return
        self._in_hand.discard(delivery)
        if self._is_unacked(delivery):
            self._free_place(delivery)
            settle(delivery.delivery_tag)

    def _free_place(self, delivery: Delivery) -> None:
        """Before the acknowledgement: keep the place for another message, or give it up when there is no room."""
        if len(self._idle[delivery.queue]) < self._count_free():
            self._busy.discard(delivery.tag)
            self._idle[delivery.queue].add(delivery.tag)
        else:
            self._give_up_place(delivery)

    def _give_up_place(self, delivery: Delivery) -> None:
        self._busy.discard(delivery.tag)
        self._channel.basic_cancel(delivery.tag)

    def _accept(self, delivery_tag: int) -> None:
        self._accepted.append(delivery_tag)

    def _reject(self, delivery_tag: int) -> None:
        del self._unacked[delivery_tag]
        self._channel.basic_reject(delivery_tag, requeue=False)

    def _requeue(self, delivery_tag: int) -> None:
        del self._unacked[delivery_tag]
        self._channel.basic_reject(delivery_tag, requeue=True)

    def _acknowledge(self) -> None:
        """What was accepted: with one frame all that is older than anything in hand, then each of the others."""
        for delivery_tag in self._accepted:
            del self._unacked[delivery_tag]
        oldest = next(iter(self._unacked), math.inf)
        older = [delivery_tag for delivery_tag in self._accepted if delivery_tag < oldest]
        if older:
            self._channel.basic_ack(max(older), multiple=True)
        for delivery_tag in self._accepted:
            if delivery_tag > oldest:
                self._channel.basic_ack(delivery_tag)
        self._accepted.clear()


def _nothing() -> None:
    """Only makes the thread look at its state again."""


def _raise_cancelled(_method_frame: object) -> None:
    raise ConsumingEnded("the broker cancelled a consumer; its queue may be gone")
