"""Shows the dead letters, or puts them back onto the runs queue: `python -m libs.common.dead_letters [--replay]`.

`make dead-letters` runs it beside the scheduler's loops, which know the broker.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pika
import pika.exceptions
from environs import Env

from libs.common.clock import format_time
from libs.common.config import Secret, load_config, read_secret_url
from libs.common.messages import UnreadableMessage, decode_run_message
from libs.common.topology import (
    DEAD_QUEUE,
    POOL_QUEUE_PREFIX,
    REQUEST_ID_HEADER,
    RUNS_QUEUE,
    declare_run_queue,
    declare_topology,
)

SHOWN_AT_ONCE = 50
SHOWN_CHARACTERS = 200

_CONNECT_SECONDS = 5
_DELIVERY_COUNT_HEADER = "x-delivery-count"
_FIRST_QUEUE_HEADER = "x-first-death-queue"
# A quorum queue drops a message that was given out and taken back 20 times, and to look is to do that.
_LOOKS_BEFORE_RENEWAL = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A message that was set aside. `problem` is None when this version could read it."""

    body: bytes
    request_id: str | None
    died_at: datetime | None
    problem: str | None


@contextmanager
def open_channel(broker_url: Secret) -> Iterator[Any]:
    """A channel with confirms, on a connection of its own; the queues are there."""
    parameters = pika.URLParameters(broker_url.reveal())
    parameters.socket_timeout = _CONNECT_SECONDS
    parameters.stack_timeout = _CONNECT_SECONDS
    parameters.blocked_connection_timeout = _CONNECT_SECONDS
    parameters.client_properties = {"connection_name": "dead letters"}
    connection = pika.BlockingConnection(parameters)
    try:
        channel = connection.channel()
        declare_topology(channel)
        channel.confirm_delivery()
        yield channel
    finally:
        connection.close()


def count_dead_letters(channel: Any) -> int:
    count: int = channel.queue_declare(DEAD_QUEUE, passive=True).method.message_count
    return count


def list_dead_letters(channel: Any, *, limit: int = SHOWN_AT_ONCE) -> list[DeadLetter]:
    """The oldest ones. They stay in the queue."""
    found: list[DeadLetter] = []
    taken: list[tuple[Any, Any, bytes]] = []
    while len(found) < limit and (message := _take(channel)) is not None:
        taken.append(message)
        found.append(_read(message[1], message[2]))
    for method, properties, body in taken:
        _give_back(channel, method, properties, body)
    return found


def replay_dead_letters(channel: Any) -> int:
    """Put back onto the queue that it was in what is there now. Returns how many.

    Each is acknowledged after the broker has confirmed its copy: a crash in between leaves two, and a claim is
    granted once. What still can't be read comes back as a dead letter.
    """
    count = 0
    # No more than there are at the start: some come back at once.
    for _ in range(count_dead_letters(channel)):
        message = _take(channel)
        if message is None:
            break
        method, properties, body = message
        request_id = _read(properties, body).request_id
        headers = {} if request_id is None else {REQUEST_ID_HEADER: request_id}
        queue = _find_queue(properties)
        declare_run_queue(channel, queue)
        _publish(channel, queue, properties, body, headers=headers)
        channel.basic_ack(method.delivery_tag)
        count += 1
    return count


def format_dead_letter(letter: DeadLetter) -> str:
    """One line of printable characters, whatever the message holds."""
    died_at = "-" if letter.died_at is None else format_time(letter.died_at)
    body = repr(letter.body[:SHOWN_CHARACTERS])[2:-1]
    rest = len(letter.body) - SHOWN_CHARACTERS
    if rest > 0:
        body += f"… {rest} bytes more"
    request_id = "-" if letter.request_id is None else repr(letter.request_id)[1:-1]
    return f"{died_at}  request {request_id}  {_explain(letter)}\n    {body}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dead_letters", description="Shows messages that nobody could read.")
    parser.add_argument("--replay", action="store_true", help="put all back onto the runs queue")
    replay: bool = parser.parse_args(arguments).replay
    broker_url = load_config(_read_broker_url)
    try:
        with open_channel(broker_url) as channel:
            _replay(channel) if replay else _show(channel)
    except (pika.exceptions.AMQPError, OSError) as error:
        sys.stderr.write(f"the broker can't be reached or refused: {type(error).__name__} {error}\n")
        return 1
    return 0


def _show(channel: Any) -> None:
    count = count_dead_letters(channel)
    _print(f"{count} dead letters in {DEAD_QUEUE}" if count != 1 else f"1 dead letter in {DEAD_QUEUE}")
    for letter in list_dead_letters(channel):
        _print(format_dead_letter(letter))
    if count > SHOWN_AT_ONCE:
        _print(f"… and {count - SHOWN_AT_ONCE} more")


def _replay(channel: Any) -> None:
    _print(f"put back: {replay_dead_letters(channel)}")


def _take(channel: Any) -> tuple[Any, Any, bytes] | None:
    method, properties, body = channel.basic_get(DEAD_QUEUE)
    return None if method is None else (method, properties, body)


def _give_back(channel: Any, method: Any, properties: Any, body: bytes) -> None:
    headers = dict(properties.headers or {})
    looks = int(headers.pop(_DELIVERY_COUNT_HEADER, 0))
    if looks < _LOOKS_BEFORE_RENEWAL:
        channel.basic_nack(method.delivery_tag, requeue=True)
        return
    _publish(channel, DEAD_QUEUE, properties, body, headers=headers)
    channel.basic_ack(method.delivery_tag)


def _publish(channel: Any, queue: str, properties: Any, body: bytes, *, headers: dict[str, Any]) -> None:
    """Returns when the broker has the message safe; raises AMQPError when it refuses it."""
    channel.basic_publish(
        "",
        queue,
        body,
        pika.BasicProperties(
            content_type=properties.content_type,
            message_id=properties.message_id,
            delivery_mode=pika.DeliveryMode.Persistent.value,
            headers=headers,
        ),
        mandatory=True,
    )


def _read(properties: Any, body: bytes) -> DeadLetter:
    headers = properties.headers or {}
    request_id = headers.get(REQUEST_ID_HEADER)
    return DeadLetter(
        body=body,
        request_id=request_id if isinstance(request_id, str) else None,
        died_at=_find_death(headers),
        problem=_find_problem(body),
    )


def _find_queue(properties: Any) -> str:
    """Where it died; the runs queue when it doesn't say so."""
    queue = (properties.headers or {}).get(_FIRST_QUEUE_HEADER)
    return queue if isinstance(queue, str) and queue.startswith(POOL_QUEUE_PREFIX) else RUNS_QUEUE


def _find_death(headers: dict[str, Any]) -> datetime | None:
    """The broker notes it in `x-death`, in UTC."""
    deaths = headers.get("x-death")
    if not isinstance(deaths, list) or not deaths or not isinstance(deaths[0], dict):
        return None
    died_at = deaths[0].get("time")
    return died_at.replace(tzinfo=UTC) if isinstance(died_at, datetime) else None


def _find_problem(body: bytes) -> str | None:
    try:
        decode_run_message(body)
    except UnreadableMessage as error:
        return str(error)
    return None


def _explain(letter: DeadLetter) -> str:
    if letter.problem is None:
        return "readable by this version: replay it"
    return f"unreadable: {letter.problem!r}"


def _read_broker_url(env: Env) -> Secret:
    return read_secret_url(env, "BROKER_URL", "amqp", "amqps")


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
