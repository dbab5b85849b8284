"""Publishes run messages: many in flight at once, each confirmed by the broker or not at all.

pika isn't thread-safe, so the connection lives in a thread of its own, and its blocking channel waits for each
confirm in turn, so this is built on the asynchronous one.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import pika
import structlog
from pika.channel import Channel
from pika.exceptions import AMQPError

from libs.common.messages import RunMessage
from libs.common.topology import (
    REQUEST_ID_HEADER,
    RUNS_QUEUE,
    declare_run_queue,
    declare_topology,
    queue_arguments,
)

log = structlog.get_logger()

# A broker that went silent is noticed, and connected to anew, after two to three of these.
_HEARTBEAT_SECONDS = 6
_BLOCKED_SECONDS = 30
_CONNECT_SECONDS = 5
_CLOSE_SECONDS = 5
_LONGEST_PAUSE_SECONDS = 5.0
# What was heard from longer ago is asked before anything is made that it is to publish.
_HEARD_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message, the request that it goes back to, and the queue that it is for."""

    message: RunMessage
    request_id: str
    queue: str = RUNS_QUEUE

    @property
    def id(self) -> str:
        return str(self.message.run_id)


class Publishes(Protocol):
    """What dispatch needs of a publisher."""

    def answers(self, *, timeout_seconds: float) -> bool: ...

    def count(self, queue_name: str, *, timeout_seconds: float) -> int | None: ...

    def publish(self, outgoing: Sequence[Outgoing], *, timeout_seconds: float) -> set[str]: ...


class _Batch:
    """The messages of one call, until each is confirmed or given up."""

    def __init__(self, outgoing: Sequence[Outgoing]) -> None:
        self.outgoing = outgoing
        self.open = {entry.id for entry in outgoing}
        self.confirmed: set[str] = set()
        self.done = threading.Event()

    def settle(self, message_id: str, *, is_confirmed: bool) -> None:
        self.open.discard(message_id)
        if is_confirmed:
            self.confirmed.add(message_id)
        if not self.open:
            self.done.set()


class Publisher:
    """A connection that comes back by itself. `start` it; `close` it at the end.

    `retry_seconds` is the pause before the first attempt to connect again; it doubles up to five seconds.

    Each connection declares the topology anew, so a broker that was wiped has its queues again.
    """

    def __init__(self, url: str, *, name: str, retry_seconds: float = 0.5) -> None:
        self._parameters = pika.URLParameters(url)
        self._parameters.heartbeat = _HEARTBEAT_SECONDS
        self._parameters.blocked_connection_timeout = _BLOCKED_SECONDS
        self._parameters.socket_timeout = _CONNECT_SECONDS
        self._parameters.stack_timeout = _CONNECT_SECONDS
        self._parameters.client_properties = {"connection_name": name}
        self._retry_seconds = retry_seconds
        self._lock = threading.Lock()
        self._link: _Link | None = None
        self._ready = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Close the connection; what is not confirmed by then counts as not published."""
        self._closing.set()
        with self._lock:
            if self._link is not None:
                self._link.ask_to_close()
        self._thread.join(_CLOSE_SECONDS)

    @property
    def is_ready(self) -> bool:
        return self._ready.is_set()

    def wait_until_ready(self, seconds: float) -> bool:
        return self._ready.wait(seconds)

    def check(self) -> None:
        """Raise when the broker can't be reached; for `/readyz`."""
        if not self.is_ready:
            raise ConnectionError("not connected")

    def answers(self, *, timeout_seconds: float) -> bool:
        """Whether the broker is there now; a connection that was cut looks well until heartbeats are missed."""
        with self._lock:
            link = self._link if self.is_ready else None
        if link is None:
            return False
        if time.monotonic() - link.heard_at < _HEARD_SECONDS:
            return True
        return self.count(RUNS_QUEUE, timeout_seconds=timeout_seconds) is not None

    def publish(self, outgoing: Sequence[Outgoing], *, timeout_seconds: float) -> set[str]:
        """Send all at once, and wait for the confirms. Returns the ids of the runs whose message is safe.

        The others may have arrived or not: publish them again later, a second message is harmless.
        """
        if not outgoing:
            return set()
        batch = _Batch(outgoing)
        with self._lock:
            if self._link is None or not self.is_ready:
                return set()
            self._link.send(batch)
        batch.done.wait(timeout_seconds)
        return set(batch.confirmed)

    def count(self, queue_name: str, *, timeout_seconds: float) -> int | None:
        """The messages that wait in one of our queues, None when the broker doesn't say so in time.

        A queue that is gone is made anew.
        """
        answer: queue.SimpleQueue[int] = queue.SimpleQueue()
        with self._lock:
            if self._link is None or not self.is_ready:
                return None
            self._link.count(queue_name, answer)
        try:
            return answer.get(timeout=timeout_seconds)
        except queue.Empty:
            return None

    def _run(self) -> None:
        pause = self._retry_seconds
        while not self._closing.is_set():
            began = time.monotonic()
            try:
                self._serve_one_connection()
            except (AMQPError, OSError) as error:
                log.warning("broker_connection_failed", error=type(error).__name__)
            except Exception:
                log.exception("publisher_failed")
            if time.monotonic() - began > _LONGEST_PAUSE_SECONDS:
                pause = self._retry_seconds
            self._closing.wait(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _serve_one_connection(self) -> None:
        link = _Link(self._parameters, on_ready=self._ready.set)
        with self._lock:
            self._link = link
        try:
            if not self._closing.is_set():
                link.serve()
        finally:
            self._ready.clear()
            with self._lock:
                self._link = None
            link.give_up()


class _Link:
    """One connection, from its opening to its end. Its callbacks all run in the thread that serves it."""

    def __init__(self, parameters: pika.URLParameters, *, on_ready: Any) -> None:
        self._on_ready = on_ready
        self._channel: Channel | None = None
        self._next_tag = 1
        self._unconfirmed: dict[int, tuple[_Batch, str]] = {}
        self._returned: set[str] = set()
        self._batches: set[_Batch] = set()
        self._declared = {RUNS_QUEUE}
        self.heard_at = float("-inf")
        self._connection = pika.SelectConnection(
            parameters,
            on_open_callback=self._on_open,
            on_open_error_callback=self._on_end,
            on_close_callback=self._on_end,
        )

    def serve(self) -> None:
        """Returns when the connection has ended."""
        self._connection.ioloop.start()

    def send(self, batch: _Batch) -> None:
        """Called from other threads, while they know that this link is served."""
        self._batches.add(batch)
        self._connection.ioloop.add_callback_threadsafe(partial(self._send, batch))

    def count(self, queue_name: str, answer: queue.SimpleQueue[int]) -> None:
        """Called from other threads, as above. There is no answer when the connection ends first."""
        self._connection.ioloop.add_callback_threadsafe(partial(self._count, queue_name, answer))

    def ask_to_close(self) -> None:
        self._connection.ioloop.add_callback_threadsafe(self._close)

    def give_up(self) -> None:
        """Nothing more will be confirmed here: let those who wait go on."""
        for batch in self._batches:
            batch.done.set()
        self._batches.clear()

    def _count(self, queue_name: str, answer: queue.SimpleQueue[int]) -> None:
        def put(frame: Any) -> None:
            self.heard_at = time.monotonic()
            answer.put(frame.method.message_count)

        if self._channel is not None and self._channel.is_open:
            # Not a passive declaration: one of a queue that is gone would close the channel.
            self._channel.queue_declare(
                queue_name, durable=True, arguments=queue_arguments(queue_name), callback=put
            )

    def _close(self) -> None:
        if self._connection.is_open:
            self._connection.close()
        else:
            self._connection.ioloop.stop()

    def _on_open(self, connection: pika.SelectConnection) -> None:
        connection.channel(on_open_callback=self._on_channel)

    def _on_end(self, connection: pika.SelectConnection, reason: Exception) -> None:
        log.warning("broker_connection_ended", reason=type(reason).__name__)
        connection.ioloop.stop()

    def _on_channel(self, channel: Channel) -> None:
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_return_callback(self._on_return)
        # Without a callback these don't wait. The broker takes them in order, so the answer to the last request
        # means that all are done; one that it refuses closes the channel.
        declare_topology(channel)
        channel.confirm_delivery(self._on_confirm, callback=partial(self._on_confirming, channel))

    def _on_confirming(self, channel: Channel, _frame: Any) -> None:
        self._channel = channel
        self.heard_at = time.monotonic()
        log.info("broker_connected")
        self._on_ready()

    def _on_channel_closed(self, _channel: Channel, reason: Exception) -> None:
        self._channel = None
        if self._connection.is_open:
            # The broker refused something, such as a queue that exists with other arguments.
            log.error("broker_closed_channel", reason=str(reason))
            self._connection.close()

    def _send(self, batch: _Batch) -> None:
        channel = self._channel
        if channel is None or not channel.is_open:
            batch.done.set()
            return
        for entry in batch.outgoing:
            self._declare(channel, entry.queue)
            self._unconfirmed[self._next_tag] = (batch, entry.id)
            self._next_tag += 1
            channel.basic_publish(
                "",
                entry.queue,
                entry.message.encode(),
                pika.BasicProperties(
                    content_type="application/json",
                    delivery_mode=pika.DeliveryMode.Persistent.value,
                    message_id=entry.id,
                    headers={REQUEST_ID_HEADER: entry.request_id},
                ),
                mandatory=True,
            )

    def _declare(self, channel: Channel, queue_name: str) -> None:
        """The broker does a channel's requests in order, so the queue is there when the message comes."""
        if queue_name not in self._declared:
            declare_run_queue(channel, queue_name)
            self._declared.add(queue_name)

    def _on_return(self, channel: Channel, method: Any, properties: pika.BasicProperties, _body: bytes) -> None:
        # The queue is gone: somebody removed it under us. A return comes before its confirm.
        log.error("message_returned", run_id=properties.message_id)
        self._returned.add(properties.message_id or "")
        declare_topology(channel)
        self._declared.discard(method.routing_key)

    def _on_confirm(self, frame: Any) -> None:
        self.heard_at = time.monotonic()
        method = frame.method
        is_ack = isinstance(method, pika.spec.Basic.Ack)
        for tag in self._list_tags(method.delivery_tag, is_multiple=method.multiple):
            batch, message_id = self._unconfirmed.pop(tag)
            batch.settle(message_id, is_confirmed=is_ack and message_id not in self._returned)
            self._returned.discard(message_id)
            if batch.done.is_set():
                self._batches.discard(batch)

    def _list_tags(self, tag: int, *, is_multiple: bool) -> list[int]:
        if not is_multiple:
            return [tag] if tag in self._unconfirmed else []
        return [known for known in self._unconfirmed if known <= tag]
