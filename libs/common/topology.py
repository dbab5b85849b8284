"""The broker's queues: named and declared in one place, by whoever connects first."""

from __future__ import annotations

import re
from typing import Any, Final

RUNS_QUEUE: Final = "taskrunner.runs"
POOL_QUEUE_PREFIX: Final = "taskrunner.pool."
DEFAULT_POOL: Final = "default"
POOL_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,49}\Z")
DEAD_QUEUE: Final = "taskrunner.runs.dead"
DEAD_EXCHANGE: Final = "taskrunner.dead"
REQUEST_ID_HEADER: Final = "x-request-id"

# Attempts are counted in PostgreSQL; the broker's own limit must never drop a run that waits for a slot.
_RUNS_ARGUMENTS: Final[dict[str, Any]] = {
    "x-queue-type": "quorum",
    "x-delivery-limit": -1,
    "x-dead-letter-exchange": DEAD_EXCHANGE,
    "x-dead-letter-routing-key": DEAD_QUEUE,
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}

# (name, arguments) of each durable queue; runs go through the default exchange, dead letters through their own.
QUEUES: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    (DEAD_QUEUE, {"x-queue-type": "quorum"}),
    (RUNS_QUEUE, _RUNS_ARGUMENTS),
)


def run_queue(pool: str) -> str:
    """The queue of the runs that only executors of this pool take."""
    return RUNS_QUEUE if pool == DEFAULT_POOL else POOL_QUEUE_PREFIX + pool


def queue_arguments(queue: str) -> dict[str, Any]:
    """What the queue is declared with: a broker refuses a second declaration that differs."""
    return dict(QUEUES).get(queue, _RUNS_ARGUMENTS)


def declare_run_queue(channel: Any, queue: str) -> None:
    """Declare the queue of a pool, on a channel on which the topology was declared; harmless when it exists."""
    channel.queue_declare(queue, durable=True, arguments=queue_arguments(queue))


def declare_topology(channel: Any) -> None:
    """Declare every exchange, queue and binding on an open channel; harmless when they exist."""
    channel.exchange_declare(DEAD_EXCHANGE, exchange_type="direct", durable=True)
    for queue, arguments in QUEUES:
        channel.queue_declare(queue, durable=True, arguments=arguments)
    channel.queue_bind(DEAD_QUEUE, DEAD_EXCHANGE, routing_key=DEAD_QUEUE)
