"""The spool: what is kept of ended runs while the scheduler is away, and what a damaged disk leaves of it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.executor.held_run import FinishedReport, HeldRun
from services.executor.outcome import Outcome
from services.executor.output import CHUNK_BYTES, LOSS_MARK, Output
from services.executor.spec import StoredOutput
from services.executor.spool import SUSPECT_AGE_SECONDS, Spool, decode, encode
from services.executor.tests.builders import make_run
from tests.polling import wait_until

ENDED_AT = datetime(2027, 1, 1, tzinfo=UTC)


def make_ended(*, output: bytes = b"out", error: bytes = b"error") -> HeldRun:
    """A run that has ended, whose report waits for the scheduler."""
    run = make_run()
    run.output.append("stdout", output)
    run.output.append("stderr", error)
    run.finished = FinishedReport(
        outcome=Outcome("failed", "timeout", 137, "too slow"),
        result=output[-10:],
        started_at=ENDED_AT - timedelta(seconds=1),
        finished_at=ENDED_AT,
        image_digest="sha256:1",
        container_id="c1",
    )
    return run


def make_spool(directory: Path, *, limit_bytes: int = 1_000_000, keep_after_seconds: float = 0.0) -> Spool:
    return Spool(directory=directory, limit_bytes=limit_bytes, keep_after_seconds=keep_after_seconds)


def id_of(run: HeldRun) -> str:
    return str(run.spec.run_id)


def restore(spool: Spool, run: HeldRun, stored: StoredOutput) -> bytes:
    """What an adopter would send of standard output."""
    spooled = spool.find(id_of(run))
    assert spooled is not None
    output = Output(on_pending=lambda: None, stored=stored)
    output.restore(spooled.unsent)
    sent = b""
    while not output.drained:
        sent += b"".join(chunk.data for chunk in output.take(CHUNK_BYTES) if chunk.stream == "stdout")
        output.confirm()
    return sent


NOTHING_STORED = StoredOutput(next_seq=0, stdout_bytes=0, stderr_bytes=0)


def test_a_report_and_its_output_come_back_as_they_were(tmp_path: Path):
    run = make_ended(output=b"a\0\xff" * 50_000)
    spool = make_spool(tmp_path)

    spool.keep(run)
    spooled = make_spool(tmp_path).find(id_of(run))

    assert spooled is not None
    assert spooled.report == run.finished
    assert spooled.unsent == run.output.list_unsent()
    assert restore(spool, run, NOTHING_STORED) == b"a\0\xff" * 50_000


def test_what_the_scheduler_stored_meanwhile_is_not_sent_again(tmp_path: Path):
    run = make_ended(output=b"x" * CHUNK_BYTES + b"rest", error=b"")
    spool = make_spool(tmp_path)
    spool.keep(run)

    stored = StoredOutput(next_seq=1, stdout_bytes=CHUNK_BYTES, stderr_bytes=0)

    assert restore(spool, run, stored) == b"rest"


def test_output_that_does_not_fit_behind_what_is_stored_is_marked_as_lost(tmp_path: Path):
    run = make_ended()
    spool = make_spool(tmp_path)
    spool.keep(run)

    stored = StoredOutput(next_seq=1, stdout_bytes=2, stderr_bytes=0)

    assert restore(spool, run, stored) == LOSS_MARK


def test_a_full_spool_drops_output_with_a_mark_and_never_a_report(tmp_path: Path):
    first, second, third = make_ended(output=b"1" * 3000), make_ended(output=b"2" * 3000), make_ended()
    spool = make_spool(tmp_path, limit_bytes=5000)

    for run in (first, second, third):
        spool.keep(run)

    assert restore(spool, first, NOTHING_STORED) == b"1" * 3000
    for run in (second, third):
        assert restore(spool, run, NOTHING_STORED) == LOSS_MARK
        spooled = spool.find(id_of(run))
        assert spooled is not None
        assert spooled.report == run.finished


def test_a_disk_that_takes_little_gets_the_report_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = make_ended(output=b"1" * 100_000)
    write = os.fsync

    def fill_up(descriptor: int) -> None:
        if os.fstat(descriptor).st_size > 10_000:
            raise OSError(28, "No space left on device")
        write(descriptor)

    monkeypatch.setattr(os, "fsync", fill_up)
    spool = make_spool(tmp_path)

    spool.keep(run)

    assert restore(spool, run, NOTHING_STORED) == LOSS_MARK
    assert [path.suffix for path in tmp_path.iterdir()] == [".run"]


def test_a_disk_that_takes_nothing_stops_nobody(tmp_path: Path):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")
    run = make_ended()
    spool = make_spool(in_the_way)

    spool.keep(run)

    assert spool.find(id_of(run)) is None


def test_a_cut_file_gives_all_that_is_whole(tmp_path: Path):
    run = make_ended(output=b"x" * 3 * CHUNK_BYTES, error=b"")
    data = encode(run, run.output.list_unsent())

    kept = [decode(data[:length]) for length in range(0, len(data) + 1, 997)] + [decode(data)]

    assert kept[0] is None
    assert kept[-1] is not None
    whole = [spooled for spooled in kept if spooled is not None]
    assert {spooled.report for spooled in whole} == {run.finished}
    assert [len(spooled.unsent.chunks) for spooled in whole] == sorted(len(s.unsent.chunks) for s in whole)
    assert all(spooled.unsent.dropped_bytes for spooled in whole[:-1])
    assert whole[-1].unsent.dropped_bytes == 0


@pytest.mark.parametrize("position", range(0, 4000, 61))
def test_a_damaged_byte_never_changes_what_is_read(position: int):
    run = make_ended(output=b"x" * 2000)
    unsent = run.output.list_unsent()
    data = bytearray(encode(run, unsent))
    data[position % len(data)] ^= 0x40

    spooled = decode(bytes(data))

    if spooled is not None:
        assert spooled.report == run.finished
        assert list(spooled.unsent.chunks) == list(unsent.chunks[: len(spooled.unsent.chunks)])
        assert spooled.unsent.dropped_bytes > 0


def test_a_file_of_another_version_is_left_alone(tmp_path: Path):
    run = make_ended()
    spool = make_spool(tmp_path)
    spool.keep(run)
    path = tmp_path / f"{id_of(run)}.run"
    path.write_bytes(b"")

    assert spool.find(id_of(run)) is None
    assert path.exists()


def test_a_settled_report_is_forgotten_also_when_that_came_while_it_was_written(tmp_path: Path):
    run = make_ended()
    spool = make_spool(tmp_path)
    spool.keep(run)
    spool.forget(id_of(run))
    late = make_ended()
    late.settle()
    spool.keep(late)

    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_released_is_its_new_holders_to_forget(tmp_path: Path):
    run = make_ended()
    spool = make_spool(tmp_path)
    spool.keep(run)
    run.release()

    spool.keep(run)

    assert spool.find(id_of(run)) is not None


def test_only_what_is_not_settled_soon_is_kept(tmp_path: Path):
    quick, slow = make_ended(), make_ended()
    spool = make_spool(tmp_path, keep_after_seconds=0.2)
    threading.Thread(target=spool.run, daemon=True).start()

    spool.watch(quick)
    spool.watch(slow)
    quick.settle()

    wait_until(lambda: spool.find(id_of(slow)) is not None)
    assert spool.find(id_of(quick)) is None


def test_without_a_directory_nothing_is_kept():
    run = make_ended()
    spool = Spool(directory=None, limit_bytes=1)

    spool.watch(run)
    spool.keep(run)

    assert spool.find(id_of(run)) is None
    assert spool.sweep(holds=_never, ask_live=_never) == 0


def test_files_of_closed_runs_and_of_dead_executors_are_swept(tmp_path: Path):
    closed, live, held, young = (make_ended() for _ in range(4))
    spool = make_spool(tmp_path)
    for run in (closed, live, held, young):
        spool.keep(run)
    (tmp_path / "half.1.draft").write_bytes(b"half")
    (tmp_path / "made-up.run").write_bytes(b"whose?")
    for path in tmp_path.iterdir():
        if path.stem != id_of(young):
            _age(path)

    removed = spool.sweep(
        holds=lambda run_id: run_id == id_of(held), ask_live=_answers({id_of(closed): False, id_of(live): True})
    )

    assert removed == 2
    assert {path.stem for path in tmp_path.iterdir()} == {id_of(run) for run in (live, held, young)} | {"made-up"}


def test_a_scheduler_that_has_not_answered_lets_every_file_stay(tmp_path: Path):
    run = make_ended()
    spool = make_spool(tmp_path)
    spool.keep(run)
    _age(tmp_path / f"{id_of(run)}.run")

    assert spool.sweep(holds=_never, ask_live=lambda _: None) == 0


def test_a_file_is_readable_by_its_owner_only(tmp_path: Path):
    run = make_ended()
    make_spool(tmp_path / "spool").keep(run)

    (path,) = (tmp_path / "spool").iterdir()

    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def _age(path: Path) -> None:
    then = time.time() - SUSPECT_AGE_SECONDS - 1
    os.utime(path, (then, then))


def _answers(live: dict[str, bool]) -> Callable[[str], bool | None]:
    return lambda run_id: live[run_id]


def _never(_run_id: str) -> bool:
    return False
