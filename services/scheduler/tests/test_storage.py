from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.common.errors import Unavailable
from services.scheduler.storage import StorageGuard, decide_refusal, read_free_bytes

MIB = 1024 * 1024


class Disk:
    """A disk whose room a test sets, and the clock by which it is looked at."""

    def __init__(self) -> None:
        self.free_mb: int | None = 2000
        self.now = 0.0
        self.guard = StorageGuard(
            path=Path("/storage"), min_free_mb=1000, read_free=self._read, monotonic=lambda: self.now
        )

    def has_room(self) -> bool:
        self.now += 5
        try:
            self.guard.require_room()
        except Unavailable:
            return False
        return True

    def _read(self, _path: Path) -> int:
        if self.free_mb is None:
            raise OSError("no such disk")
        return self.free_mb * MIB


@pytest.fixture
def disk() -> Disk:
    return Disk()


def test_new_tasks_are_refused_below_the_limit_until_there_is_clearly_room(disk: Disk):
    answers = []
    for disk.free_mb in (1000, 999, 1001, 1249, 1250, 1001):
        answers.append(disk.has_room())

    assert answers == [True, False, False, False, True, True]


def test_readiness_says_how_much_room_there_is_and_when_there_is_none(disk: Disk):
    assert disk.guard.check() == {"freeMb": 2000, "minFreeMb": 1000}

    disk.free_mb, disk.now = 10, 5.0

    with pytest.raises(OSError, match="only 10 MiB are free"):
        disk.guard.check()


def test_a_disk_that_cannot_be_seen_refuses_nothing_but_is_reported(disk: Disk):
    disk.free_mb = 1
    assert not disk.has_room()

    disk.free_mb = None

    assert disk.has_room()
    with pytest.raises(OSError, match="can't be looked at"):
        disk.guard.check()


@pytest.mark.parametrize(("path", "min_free_mb"), [(None, 1000), (Path("/storage"), 0)], ids=["path", "limit"])
def test_without_a_path_or_a_limit_nothing_is_looked_at(path: Path | None, min_free_mb: int):
    def read(_path: Path) -> int:
        raise AssertionError("it was looked at")

    guard = StorageGuard(path=path, min_free_mb=min_free_mb, read_free=read)

    guard.require_room()
    assert guard.check() == {}


@given(st.integers(0, 2**50), st.integers(1, 2**50))
def test_who_refuses_goes_on_to_refuse_at_least_where_a_new_guard_would(free_bytes: int, min_free_bytes: int):
    anew = decide_refusal(free_bytes, min_free_bytes=min_free_bytes, refuses=False)
    still = decide_refusal(free_bytes, min_free_bytes=min_free_bytes, refuses=True)

    assert still or not anew


def test_the_room_of_a_real_disk_is_a_number(tmp_path: Path):
    assert read_free_bytes(tmp_path) > 0


@pytest.mark.component
def test_a_full_disk_refuses_new_tasks_with_a_503_and_nothing_else(make_client, make_caller, tmp_path):
    caller = make_caller(make_client())
    task = caller.create()
    full = make_caller(make_client(storage_path=tmp_path, storage_min_free_mb=2**40), caller.user_id)

    answer = full("POST", "/api/tasks/", json={"image": "busybox"})

    assert (answer.status_code, answer.json["code"], answer.headers["Retry-After"]) == (503, "storage_full", "60")
    assert [entry["id"] for entry in full("GET", "/api/tasks/").json["items"]] == [task["id"]]
    assert full("POST", f"/api/tasks/{task['id']}/cancel").status_code == 202
    checks = full("GET", "/readyz").json["checks"]
    assert checks["storage"]["status"] == "down"
    assert "new tasks are refused" in checks["storage"]["error"]
    assert "taskrunner_storage_refuses 1.0" in full("GET", "/metrics").text
