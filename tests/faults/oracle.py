"""What really happened to task containers, by the engine's own events, whatever the system believes.

The journal listens while faults go on; the findings are computed from it afterwards. It goes by labels and not by
the container's name, so that it also sees what a system does that names them otherwise.

A daemon that goes down takes its containers with it and tells nobody of their ends: they ended with it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import docker
from docker.errors import DockerException
from urllib3.exceptions import HTTPError

from services.executor.runtime import LABEL_EXECUTOR, LABEL_INSTANCE, LABEL_RUN, LABEL_TASK
from tests.polling import wait_until

NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Event:
    """A container of a task began (`start`) or ended (`die`) at this engine time; who made it says its label."""

    at_nanoseconds: int
    action: str
    task_id: str
    run_id: str
    container_id: str
    maker: str = ""


@dataclass(frozen=True, slots=True)
class Interval:
    """One container's life; `ended` is None while it runs. Nanoseconds since the epoch.

    `maker` is the executor that created it, whoever saw its end. `with_engine`: it ended with its engine.
    """

    task_id: str
    run_id: str
    container_id: str
    maker: str
    began: int
    ended: int | None
    with_engine: bool = False

    @property
    def seconds(self) -> float:
        return 0.0 if self.ended is None else (self.ended - self.began) / NANOSECONDS


@dataclass(frozen=True, slots=True, repr=False)
class Findings:
    """`overlaps` are pairs of intervals of one task that touch; `restarts` are runs that were started twice."""

    intervals: Mapping[str, Sequence[Interval]]
    overlaps: Sequence[tuple[Interval, Interval]]
    starts_per_run: Mapping[str, int]

    @property
    def restarts(self) -> Sequence[str]:
        return [run_id for run_id, starts in self.starts_per_run.items() if starts > 1]

    @property
    def unfinished(self) -> Sequence[Interval]:
        return [each for of_task in self.intervals.values() for each in of_task if each.ended is None]


class Journal:
    """Takes down every start and end of an instance's task containers, from `start` to `stop`.

    `breaks` counts how often the engine broke off. It remembers its latest events for who asks again, but not
    beyond its own end, after which there is nothing to be told but ends.
    """

    def __init__(self, engine: docker.DockerClient, *, instance: str) -> None:
        self._engine = engine
        self._filters = {
            "type": "container",
            "event": ["start", "die"],
            "label": [f"{LABEL_INSTANCE}={instance}", LABEL_TASK],
        }
        self._events: set[Event] = set()
        self._stream: Any = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="oracle", daemon=True)
        self.breaks = 0

    def start(self) -> None:
        self._thread.start()
        wait_until(lambda: self._stream is not None, what="the engine's events were being listened to")

    def look(self) -> Findings:
        """What has been heard so far; the listening goes on."""
        return judge(set(self._events))

    def stop(self) -> Set[Event]:
        """All events; those of the last moment are waited for."""
        time.sleep(1.0)
        self._stopping.set()
        self._stream.close()
        self._thread.join(5.0)
        return self._events

    def _listen(self) -> None:
        since = time.time()
        while not self._stopping.is_set():
            try:
                # The engine repeats what it remembers since then; a set holds each event once.
                stream = self._engine.events(decode=True, filters=self._filters, since=int(since))
            except (DockerException, OSError):
                self._stopping.wait(0.1)
                continue
            self._stream = stream
            # What the SDK makes of a stream that is closed while it is read is an AttributeError.
            with suppress(DockerException, OSError, HTTPError, ValueError, AttributeError):
                for fields in stream:
                    self._events.add(read_event(fields))
                    since = fields["time"]
            if not self._stopping.is_set():
                self.breaks += 1


def read_event(fields: Mapping[str, Any]) -> Event:
    """From the engine's words."""
    actor = fields["Actor"]
    return Event(
        at_nanoseconds=fields["timeNano"],
        action=fields["Action"],
        task_id=actor["Attributes"][LABEL_TASK],
        run_id=actor["Attributes"][LABEL_RUN],
        container_id=actor["ID"],
        maker=actor["Attributes"][LABEL_EXECUTOR],
    )


def judge(events: Iterable[Event], *, engine_ends: Sequence[int] = ()) -> Findings:
    """Intervals, overlaps and starts; `engine_ends` are the times at which the daemon went down. Pure."""
    ordered = sorted(events, key=lambda event: event.at_nanoseconds)
    by_task: dict[str, list[Interval]] = defaultdict(list)
    by_container: dict[str, list[Event]] = defaultdict(list)
    for event in ordered:
        by_container[event.container_id].append(event)
    for of_container in by_container.values():
        for interval in _list_intervals(of_container, sorted(engine_ends)):
            by_task[interval.task_id].append(interval)
    for of_task in by_task.values():
        of_task.sort(key=lambda interval: interval.began)
    return Findings(
        intervals=by_task,
        overlaps=[pair for of_task in by_task.values() for pair in _list_overlaps(of_task)],
        starts_per_run=Counter(event.run_id for event in ordered if event.action == "start"),
    )


def _list_intervals(events: Sequence[Event], engine_ends: Sequence[int]) -> Iterable[Interval]:
    """Of one container, in order of time."""
    open_since: Event | None = None
    for event in events:
        if event.action == "start":
            if open_since is not None:
                yield _to_interval(open_since, None, engine_ends)
            open_since = event
        elif open_since is not None:
            yield _to_interval(open_since, event, engine_ends)
            open_since = None
    if open_since is not None:
        yield _to_interval(open_since, None, engine_ends)


def _to_interval(start: Event, end: Event | None, engine_ends: Sequence[int]) -> Interval:
    ended = None if end is None else end.at_nanoseconds
    engine_ended = next((at for at in engine_ends if at >= start.at_nanoseconds), None)
    with_engine = engine_ended is not None and (ended is None or engine_ended < ended)
    return Interval(
        task_id=start.task_id,
        run_id=start.run_id,
        container_id=start.container_id,
        maker=start.maker,
        began=start.at_nanoseconds,
        ended=engine_ended if with_engine else ended,
        with_engine=with_engine,
    )


def _list_overlaps(intervals: Sequence[Interval]) -> Iterable[tuple[Interval, Interval]]:
    """Of one task, in order of their beginnings; neighbours are enough to see whether there is any."""
    for earlier, later in pairwise(intervals):
        if earlier.ended is None or later.began < earlier.ended:
            yield earlier, later
