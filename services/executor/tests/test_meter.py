"""Reading what a container uses, from control groups as each kind of engine lays them out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.executor.meter import LAST_PAUSE_SECONDS, UNKNOWN, Meter, Usage, decide_pause

ID = "c" * 64
MIB = 1024 * 1024

LAYOUTS = {
    "version 1, cgroupfs": ("memory/docker/{id}", "cpuacct/docker/{id}", 1),
    "version 1, systemd": ("memory/system.slice/docker-{id}.scope", "cpuacct/system.slice/docker-{id}.scope", 1),
    "version 2, cgroupfs": ("docker/{id}", "docker/{id}", 2),
    "version 2, systemd": ("system.slice/docker-{id}.scope", "system.slice/docker-{id}.scope", 2),
}


class Groups:
    """A container's control groups in a folder."""

    def __init__(self, root: Path, layout: str, container_id: str = ID) -> None:
        memory, cpu, self._version = LAYOUTS[layout]
        self._memory = root / memory.format(id=container_id)
        self._cpu = root / cpu.format(id=container_id)

    def use(self, *, memory_bytes: int, cpu_seconds: float) -> None:
        for directory in (self._memory, self._cpu):
            directory.mkdir(parents=True, exist_ok=True)
        if self._version == 1:
            (self._memory / "memory.max_usage_in_bytes").write_text(f"{memory_bytes}\n")
            (self._cpu / "cpuacct.usage").write_text(f"{round(cpu_seconds * 1e9)}\n")
        else:
            (self._memory / "memory.peak").write_text(f"{memory_bytes}\n")
            microseconds = round(cpu_seconds * 1e6)
            (self._cpu / "cpu.stat").write_text(f"usage_usec {microseconds}\nuser_usec 1\nsystem_usec 2\n")

    def spoil(self) -> None:
        """What a read of a control group's file that is gone comes to."""
        for directory in {self._memory, self._cpu}:
            for path in directory.iterdir():
                path.write_text("")


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture(params=sorted(LAYOUTS))
def groups(request: Any, tmp_path: Path) -> Groups:
    return Groups(tmp_path, request.param)


def test_the_peak_of_memory_and_the_processor_time_are_read(tmp_path: Path, groups: Groups):
    groups.use(memory_bytes=3 * MIB + 1, cpu_seconds=0.25)
    meter = Meter(tmp_path)
    meter.watch(ID)

    usage = meter.take(ID)

    assert usage == Usage(max_memory_mb=4, cpu_seconds=0.25)


def test_what_was_read_last_before_the_end_counts(tmp_path: Path, groups: Groups, time: Time):
    meter = Meter(tmp_path, monotonic=time)
    meter.watch(ID)
    meter.run_once()
    groups.use(memory_bytes=5 * MIB, cpu_seconds=1.5)
    time.now += 0.1
    meter.run_once()
    groups.spoil()

    assert meter.take(ID) == Usage(max_memory_mb=5, cpu_seconds=1.5)


def test_it_looks_again_when_it_said_it_would(tmp_path: Path, groups: Groups, time: Time):
    groups.use(memory_bytes=MIB, cpu_seconds=1)
    meter = Meter(tmp_path, monotonic=time)
    meter.watch(ID)
    meter.run_once()
    groups.use(memory_bytes=2 * MIB, cpu_seconds=2)

    time.now += meter.run_once()
    meter.run_once()
    groups.spoil()

    assert meter.take(ID) == Usage(max_memory_mb=2, cpu_seconds=2)


def test_a_container_that_was_never_seen_is_unknown(tmp_path: Path):
    meter = Meter(tmp_path)
    meter.watch(ID)
    meter.run_once()

    assert meter.take(ID) == UNKNOWN
    assert meter.take("another") == UNKNOWN


def test_without_control_groups_nothing_is_known_and_nothing_looked_for():
    meter = Meter(None)
    meter.watch(ID)

    assert meter.run_once() > LAST_PAUSE_SECONDS
    assert meter.take(ID) == UNKNOWN


def test_no_file_stays_open(tmp_path: Path, groups: Groups, open_files: Callable[[], int]):
    groups.use(memory_bytes=MIB, cpu_seconds=1)
    meter = Meter(tmp_path)
    before = open_files()

    for _ in range(3):
        meter.watch(ID)
        meter.run_once()
        meter.take(ID)

    assert open_files() == before


@pytest.fixture
def open_files() -> Callable[[], int]:
    return lambda: len(list(Path("/proc/self/fd").iterdir()))


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_looks_become_rarer_with_age_and_miss_at_most_a_twentieth(age, more):
    pause = decide_pause(age)

    assert pause <= decide_pause(age + more) <= LAST_PAUSE_SECONDS
    assert pause <= max(age * 0.05, 0.02)
