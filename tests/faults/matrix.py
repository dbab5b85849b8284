"""Runs cases in several worlds at a time, since they mostly wait, and keeps what was seen."""

from __future__ import annotations

import os
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

from libs.common.clock import utc_now
from tests.faults.crash_table import CUT, FREEZE, KILL, RESTART, TABLE
from tests.faults.rules import CHECKS
from tests.faults.world import World
from tests.polling import wait_until

# A leftover of a part that was away is removed by the reaper, within a minute.
CLEAN_SECONDS = 90.0
FAULTS = (KILL, RESTART, FREEZE, CUT)

MakeWorld = Callable[[], World]


class Trial(Protocol):
    """A case or a rule: something to be tried in a world that is all there."""

    @property
    def id(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def within(self) -> float: ...

    @property
    def longest_seconds(self) -> float: ...

    def run(self, world: World) -> float: ...


class Matrix:
    """Begins with all trials at once, in as many worlds as it is given; `result` waits for one.

    `seen` gets a line for each, as they end.
    """

    def __init__(self, trials: Sequence[Trial], make_world: MakeWorld, *, worlds: int, seen: Path) -> None:
        self._results: Mapping[Trial, Future[float]] = {trial: Future() for trial in trials}
        self._make_world = make_world
        self._seen = seen
        self._waiting: queue.SimpleQueue[Trial] = queue.SimpleQueue()
        # The longest first, so that all worlds end together.
        for trial in sorted(trials, key=lambda each: each.longest_seconds, reverse=True):
            self._waiting.put(trial)
        self._stopping = threading.Event()
        self._left: list[Future[None]] = []
        count = min(worlds, len(trials))
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def result(self, trial: Trial) -> float:
        """The seconds that it took; raises what went wrong."""
        return self._results[trial].result()

    def check_nothing_is_left(self) -> None:
        """When all trials are done: no world has a container or a live run, or this raises what it has."""
        for thread in self._threads:
            thread.join()
        for each in self._left:
            each.result()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def render(self) -> str:
        """For docs/task-model.md: the longest time of each cell that was tried, in seconds."""
        longest: dict[str, dict[str, float]] = defaultdict(dict)
        for trial, result in self._results.items():
            if result.done() and result.exception() is None:
                cell, fault = longest[trial.name], getattr(trial, "fault", "")
                cell[fault] = max(cell.get(fault, 0.0), result.result())
        lines = [
            "| crash point | failpoint | killed | killed, restarted | frozen | cut off |",
            "|---|---|" + "---|" * 4,
        ]
        for name, crash in TABLE.items():
            cells = [_render_cell(longest[name].get(fault), crash.within.get(fault)) for fault in FAULTS]
            lines.append(f"| {crash.row} | `{crash.failpoint}` | {' | '.join(cells)} |")
        for name, check in CHECKS.items():
            lines.append(f"| {check.says} | – | {_render_cell(longest[name].get(''), check.within)} | – | – | – |")
        return "\n".join(lines)

    def _work(self) -> None:
        world: World | None = None
        while not self._stopping.is_set():
            try:
                trial = self._waiting.get_nowait()
            except queue.Empty:
                break
            result = self._results[trial]
            try:
                world = world or self._make_world()
                world.prepare()
                result.set_result(trial.run(world))
            except BaseException as failure:  # noqa: BLE001  It is raised again in the trial's test.
                result.set_exception(failure)
                # What it printed stays, and the next trial gets a world that nothing has gone wrong in.
                if world is not None:
                    self._close(world)
                    world = None
            self._note(trial, result)
        if world is not None:
            self._leave(world)

    def _close(self, world: World) -> None:
        try:
            world.close()
        except Exception as failure:  # noqa: BLE001  The trials that wait need this thread.
            self._write(f"{world.instance} not closed: {failure!r}")

    def _note(self, trial: Trial, result: Future[float]) -> None:
        failure = result.exception()
        said = f"{result.result():.1f} of {trial.within:g} s" if failure is None else f"{failure!r}"[:1000]
        self._write(f"{trial.id} {said}")

    def _write(self, line: str) -> None:
        with self._seen.open("a") as seen:
            seen.write(f"{utc_now():%H:%M:%S} {line}\n")

    def _leave(self, world: World) -> None:
        left: Future[None] = Future()
        try:
            if not self._stopping.is_set():
                _check_clean(world)
            left.set_result(None)
        except BaseException as failure:  # noqa: BLE001  It is raised again in its test.
            left.set_exception(failure)
        self._left.append(left)
        self._close(world)
        if left.exception() is None:
            world.forget()


def _check_clean(world: World) -> None:
    world.prepare()
    wait_until(
        lambda: not world.list_containers(), what="all containers were removed", seconds=CLEAN_SECONDS, every=0.5
    )
    assert world.count_open_tasks() == 0
    findings = world.journal.look()
    assert not findings.overlaps
    assert not findings.restarts
    assert not findings.unfinished


def _render_cell(seconds: float | None, within: float | None) -> str:
    if within is None:
        return "–"
    return "?" if seconds is None else f"{seconds:.1f} of {within:g}"


def read_repeat() -> int:
    return int(os.environ.get("FAILPOINTS_REPEAT") or 1)


def read_world_count() -> int:
    """Each is six processes and some 350 MB."""
    return int(os.environ.get("FAILPOINTS_WORLDS") or 3 * (os.cpu_count() or 1))
