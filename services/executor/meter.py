"""What a run uses: the peak of its memory and its processor time, read from the engine's control groups.

The engine takes a second to answer for its own statistics, and when a run's output has ended its control groups
are gone. So they are looked at while they last, often at first and ever less often: what is missed is at most a
twentieth of the run's time (of a short one 20 ms), and never more than a second. The peak is the kernel's own, so
only growth after the last look is missed.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger()

FIRST_PAUSE_SECONDS = 0.02
LAST_PAUSE_SECONDS = 1.0
PAUSE_SHARE = 0.05
IDLE_SECONDS = 60.0
READ_BYTES = 256
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Usage:
    """What is known of a run's consumption; None what isn't."""

    max_memory_mb: int | None = None
    cpu_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a kind of engine keeps the counters of a container, and how they are read."""

    memory: str
    cpu: str
    read_cpu_seconds: Callable[[str], float]


def _read_nanoseconds(text: str) -> float:
    return int(text) / 1e9


def _read_cpu_stat(text: str) -> float:
    """From `cpu.stat`, whose first line is `usage_usec N`."""
    name, value = text.split(maxsplit=2)[:2]
    if name != "usage_usec":
        raise ValueError(name)
    return int(value) / 1e6


UNKNOWN: Final = Usage()

# Version 1 and 2 of control groups, each as the engine's cgroupfs and systemd drivers lay them out.
PLACES = tuple(
    place
    for directory in ("docker/{id}", "system.slice/docker-{id}.scope")
    for place in (
        Place(
            f"memory/{directory}/memory.max_usage_in_bytes",
            f"cpuacct/{directory}/cpuacct.usage",
            _read_nanoseconds,
        ),
        Place(f"{directory}/memory.peak", f"{directory}/cpu.stat", _read_cpu_stat),
    )
)


class _Metered:
    """One container: its open counters once they are there, and what was last read of them."""

    def __init__(self, container_id: str, now: float) -> None:
        self.container_id = container_id
        self.began = now
        self.due = now
        self.place: Place | None = None
        self.files: Mapping[str, int] = {}
        self.max_memory_bytes: int | None = None
        self.cpu_seconds: float | None = None
        self.ended = False

    def close(self) -> None:
        for file in self.files.values():
            os.close(file)
        self.files = {}


class Meter:
    """`directory` is the host's control groups as this process sees them; None, and nothing is ever known.

    `run` is the thread's loop, all else is for any thread.
    """

    def __init__(self, directory: Path | None, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._monotonic = monotonic
        self._places = PLACES
        self._condition = threading.Condition()
        self._metered: dict[str, _Metered] = {}

    def watch(self, container_id: str) -> None:
        """Look at the container from now on: before it is started, or there may be nothing to be seen."""
        if self._directory is None:
            return
        with self._condition:
            self._metered.setdefault(container_id, _Metered(container_id, self._monotonic()))
            self._condition.notify()

    def take(self, container_id: str) -> Usage:
        """What was seen of it; it isn't looked at any more."""
        with self._condition:
            metered = self._metered.pop(container_id, None)
            if metered is None:
                return UNKNOWN
            self._look(metered)
            metered.close()
        memory = metered.max_memory_bytes
        return Usage(
            max_memory_mb=None if memory is None else math.ceil(memory / MIB),
            cpu_seconds=None if metered.cpu_seconds is None else round(metered.cpu_seconds, 3),
        )

    def run(self) -> None:
        while True:
            pause = self.run_once()
            with self._condition:
                self._condition.wait(pause)

    def run_once(self) -> float:
        """Look at those whose time has come. Seconds until the next one's has."""
        with self._condition:
            now = self._monotonic()
            for metered in self._metered.values():
                if metered.due <= now and not metered.ended:
                    self._look(metered)
                    metered.due = now + decide_pause(now - metered.began)
            dues = [metered.due for metered in self._metered.values() if not metered.ended]
            return min([IDLE_SECONDS, *(max(due - now, 0.0) for due in dues)])

    def _look(self, metered: _Metered) -> None:
        if metered.ended or not (metered.files or self._open(metered)):
            return
        assert metered.place is not None  # noqa: S101  _open has found it.
        try:
            metered.cpu_seconds = metered.place.read_cpu_seconds(_read(metered.files["cpu"]))
            metered.max_memory_bytes = int(_read(metered.files["memory"]))
        except (OSError, ValueError):
            # The container has ended, and with it its control group.
            metered.ended = True

    def _open(self, metered: _Metered) -> bool:
        """Whether the container's counters are there. An engine that keeps them elsewhere never has them."""
        assert self._directory is not None  # noqa: S101  watch has seen to it.
        for place in self._places:
            files: dict[str, int] = {}
            with contextlib.suppress(OSError):
                for name, path in (("memory", place.memory), ("cpu", place.cpu)):
                    whole = self._directory / path.format(id=metered.container_id)
                    files[name] = os.open(whole, os.O_RDONLY | os.O_CLOEXEC)
            if len(files) == 2:
                metered.place, metered.files = place, files
                # An engine has one way to lay them out.
                self._places = (place,)
                return True
            for file in files.values():
                os.close(file)
        return False


def decide_pause(age_seconds: float) -> float:
    """Until the next look at a container of that age. Pure."""
    return min(max(age_seconds * PAUSE_SHARE, FIRST_PAUSE_SECONDS), LAST_PAUSE_SECONDS)


def _read(file: int) -> str:
    """The counter anew: these files have no position worth keeping."""
    return os.pread(file, READ_BYTES, 0).decode()
