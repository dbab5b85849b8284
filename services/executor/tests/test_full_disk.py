"""A full disk under the spool: what ended is reported all the same, and who asks is told."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.executor.output import LOSS_MARK
from services.executor.tests.stand import ROOT, Stand, ends, read, read_metric, read_status
from tests.polling import wait_until

pytestmark = pytest.mark.component

DISK_MIB = 2
LARGE_BYTES = 3 * 1024 * 1024
# Who isn't root may mount something, too, in a place of their own.
_OWN_MOUNTS = ("unshare", "--user", "--map-root-user", "--mount")


class SmallDisk:
    """A file system of 2 MiB at `directory`, seen only by what runs `within` it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        script = 'mount -t tmpfs -o size="$1"m none "$2" && echo ready && exec sleep infinity'
        self._holder = subprocess.Popen(
            [*_OWN_MOUNTS, "sh", "-c", script, "", str(DISK_MIB), directory], stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"

    @property
    def within(self) -> list[str]:
        target = ["--target", str(self._holder.pid), "--user", "--mount", "--preserve-credentials"]
        return ["nsenter", *target, f"--wd={ROOT}"]

    def list_names(self) -> list[str]:
        listed = subprocess.run([*self.within, "ls", self.directory], check=True, capture_output=True, text=True)
        return listed.stdout.split()

    def fill(self) -> None:
        """Until it says that there is no room left."""
        script = 'cat /dev/zero >"$1" || true'
        subprocess.run(
            [*self.within, "sh", "-c", script, "", self.directory / "ballast"], check=True, capture_output=True
        )

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    disk = SmallDisk(tmp_path)
    yield disk
    disk.close()


def test_output_without_room_is_dropped_with_a_mark_and_its_report_is_kept(stand: Stand, disk: SmallDisk):
    process, port = stand.start(within=disk.within, EXECUTOR_SPOOL_DIR=str(disk.directory))
    row = stand.add("sh", "-c", f"sleep 1; head -c {LARGE_BYTES} /dev/zero; echo end; exit 5")
    stand.wait_started(row)

    stand.scheduler.away = True
    wait_until(lambda: disk.list_names() == [f"{row.task['runId']}.run"], what="keeping the report")
    wait_until(lambda: read_metric(port, "spooled_total") == 1, what="counting it")
    dropped_bytes = read_metric(port, "spool_dropped_bytes_total")
    process.send_signal(signal.SIGKILL)
    process.wait()
    for container in stand.containers():
        container.remove(force=True)
    stand.scheduler.away = False
    stand.start("executor-2", within=disk.within, EXECUTOR_SPOOL_DIR=str(disk.directory))
    stand.scheduler.adoptions.append(row.task["runId"])
    stand.scheduler.wait_finished(row)

    assert dropped_bytes >= LARGE_BYTES
    assert ends(row) == ("failed", "exit_nonzero", 5)
    assert row.result.endswith(b"end\n")
    assert row.output("stdout") == LOSS_MARK


def test_a_disk_that_takes_nothing_costs_nothing_while_the_executor_lives_and_readiness_says_so(
    stand: Stand, disk: SmallDisk
):
    _, port = stand.start(within=disk.within, EXECUTOR_SPOOL_DIR=str(disk.directory))
    row = stand.add("sh", "-c", "sleep 1; echo done")
    stand.wait_started(row)
    assert '"spool": {"status": "up"' in read(port, "/readyz")
    disk.fill()

    stand.scheduler.away = True
    wait_until(lambda: read_metric(port, "spool_failures_total") == 1, what="failing to keep the report")

    readiness = read(port, "/readyz")
    assert '"status": "degraded"' in readiness
    assert "the spool's disk is full" in readiness
    assert read_status(port, "/readyz") == 200
    stand.scheduler.away = False
    stand.scheduler.wait_finished(row)
    assert ends(row) == ("completed", None, 0)
    assert row.output("stdout") == b"done\n"
