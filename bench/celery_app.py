"""A Celery application with a task that does nothing, and what sends it: the other side of bench/pipeline.py.

Runs in a virtual environment of its own, from requirements/bench.txt, and never in the app image.

    celery --app bench.celery_app worker …      the workers
    python -m bench.celery_app COUNT            sends so many, waits for all results, prints how long that took
                                                and how long sending took, in seconds

CELERY_BROKER and CELERY_RESULTS are the addresses of RabbitMQ and of a database of Redis that holds nothing else.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import redis
from celery import Celery
from kombu import Queue

QUEUE = "bench.celery"
# Each publish waits for its confirm, so several are under way only from several threads.
SENDERS = 8
WARM_UP_TASKS = 200
POLL_SECONDS = 0.05
LONGEST_SECONDS = 600.0

app = Celery("bench", broker=os.environ["CELERY_BROKER"])
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_transport_options={"confirm_publish": True},
    task_acks_late=True,
    task_default_queue=QUEUE,
    # As ours is: replicated by its kind, and on the disk before a publish is confirmed.
    task_queues=[Queue(QUEUE, durable=True, queue_arguments={"x-queue-type": "quorum"})],
    worker_enable_remote_control=False,
    worker_send_task_events=False,
)
# The sender keeps no subscription for each result, which would cost it as much as sending: it counts them.
if "worker" in sys.argv:
    app.conf.result_backend = os.environ["CELERY_RESULTS"]


@app.task(name="noop")
def noop() -> None:
    """Nothing; its result is kept."""


def send(count: int) -> None:
    with ThreadPoolExecutor(SENDERS) as threads:
        for future in [threads.submit(_send_some, count // SENDERS) for _ in range(SENDERS)]:
            future.result()
    _send_some(count % SENDERS)


def _send_some(count: int) -> None:
    for _ in range(count):
        noop.apply_async()


def wait_for(results: Callable[[], int], count: int) -> None:
    deadline = time.monotonic() + LONGEST_SECONDS
    while results() < count:
        if time.monotonic() > deadline:
            raise SystemExit(f"{results()} of {count} results came within {LONGEST_SECONDS:g} s")
        time.sleep(POLL_SECONDS)


def run(count: int) -> None:
    results = redis.Redis.from_url(os.environ["CELERY_RESULTS"])
    results.flushdb()
    send(WARM_UP_TASKS)
    wait_for(results.dbsize, WARM_UP_TASKS)
    began = time.monotonic()
    send(count)
    sent = time.monotonic()
    wait_for(results.dbsize, WARM_UP_TASKS + count)
    print(time.monotonic() - began, sent - began)


if __name__ == "__main__":
    run(int(sys.argv[1]))
