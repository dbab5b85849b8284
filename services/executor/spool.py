"""Keeps finished reports on disk while the scheduler is away, for whoever adopts their runs.

A container stays until its report was settled, so nearly all can be had from it again. The spool keeps what can't:
that the exit was seen and why (an exit before an engine's restart isn't believed, and a signal's reason is in no
container), and output whose container or whose copy at the engine is gone (ADR 12).

One file a run, in a directory that all executors on one engine share. A file is a row of records, each with its
length and checksum: the report first, then the chunks of output, then the end. It is durable and whole before it
has its name. A tail that is cut or damaged all the same costs the output from there on, never the report.
"""

from __future__ import annotations

import base64
import json
import os
import queue
import shutil
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from libs.common.clock import format_time, parse_time
from services.executor.held_run import FinishedReport, HeldRun
from services.executor.meter import Usage
from services.executor.metrics import SPOOL_BYTES, SPOOL_DROPPED, SPOOL_FAILURES, SPOOL_RESTORED, SPOOLED
from services.executor.outcome import Outcome
from services.executor.output import Chunk, Unsent
from services.executor.report_fields import finished_fields
from services.executor.spec import is_run_id, read_stored_output

log = structlog.get_logger()

VERSION = 1
SUFFIX = ".run"
DRAFT_SUFFIX = ".draft"

# A scheduler that answers settles a report within a fraction of this.
KEEP_AFTER_SECONDS = 3.0
# A younger file's run has most likely just been settled, and its executor is about to remove it.
SUSPECT_AGE_SECONDS = 60.0

# What a report with its result may take, several times over.
LEAST_FREE_BYTES = 1024 * 1024

_HEADER = struct.Struct(">II")


@dataclass(frozen=True, slots=True)
class Spooled:
    """What is known of a run that has ended: its report, and the output that may not have been stored."""

    report: FinishedReport
    unsent: Unsent


class Spool:
    """The directory; without one (None) nothing is kept.

    `run` is the thread's loop, all else is for any thread. `limit_bytes` bounds the output, never a report.
    """

    def __init__(
        self, *, directory: Path | None, limit_bytes: int, keep_after_seconds: float = KEEP_AFTER_SECONDS
    ) -> None:
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._keep_after_seconds = keep_after_seconds
        self._writing = threading.Lock()
        self._waiting: queue.SimpleQueue[tuple[HeldRun, float]] = queue.SimpleQueue()
        # Runs whose file this process wrote or read; `sweep` finds all others.
        self._known: set[str] = set()

    def watch(self, run: HeldRun) -> None:
        """Keep the run's report unless it is settled soon."""
        if self._directory is not None:
            self._waiting.put((run, time.monotonic() + self._keep_after_seconds))

    def check(self) -> dict[str, int]:
        """For `/readyz`: how much room there is. Raises when a report may not find any."""
        if self._directory is None:
            return {}
        folder = next(each for each in (self._directory, *self._directory.parents) if each.is_dir())
        free_bytes = shutil.disk_usage(folder).free
        if free_bytes < LEAST_FREE_BYTES:
            raise OSError(f"the spool's disk is full: {free_bytes} bytes are free")
        return {"freeBytes": free_bytes}

    def run(self) -> None:
        while True:
            run, due = self._waiting.get()
            # While it waits for one, nearly all behind that are closed: it wakes once for many.
            if not run.closed:
                time.sleep(max(0.0, due - time.monotonic()))
                self.keep(run)

    def keep(self, run: HeldRun) -> None:
        """Have the run's report on disk, and as much of its output as there is room for; durable on return."""
        if self._directory is None or run.finished is None or run.settled or run.released:
            return
        unsent = run.output.list_unsent()
        with self._writing:
            try:
                self._write(run, _fit(unsent, self._limit_bytes - self._measure()))
            except OSError as error:
                log.warning("spool_write_failed", **run.log_ids, error=str(error))
                self._keep_report_alone(run, unsent)
        if run.settled:
            # The scheduler came back while this was written.
            self.forget(str(run.spec.run_id))

    def find(self, run_id: str) -> Spooled | None:
        """What was kept of the run; None when there is nothing, or nothing that can be read."""
        if self._directory is None:
            return None
        try:
            data = self._path(run_id).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("spool_unreadable", run_id=run_id, error=str(error))
            return None
        self._known.add(run_id)
        spooled = decode(data)
        if spooled is None:
            log.warning("spool_unreadable", run_id=run_id, error="its report is damaged")
        else:
            SPOOL_RESTORED.inc()
        return spooled

    def forget(self, run_id: str) -> None:
        """The run's report is settled."""
        if run_id not in self._known:
            return
        self._known.discard(run_id)
        try:
            self._path(run_id).unlink(missing_ok=True)
        except OSError as error:
            log.warning("spool_not_removed", run_id=run_id, error=str(error))

    def sweep(self, *, holds: Callable[[str], bool], ask_live: Callable[[str], bool | None]) -> int:
        """Remove what belongs to runs that have closed, and drafts of executors that died. How many files."""
        removed = 0
        for path in self._list_old():
            if path.suffix == SUFFIX and not is_run_id(path.stem):
                continue
            if path.suffix == SUFFIX and (holds(path.stem) or ask_live(path.stem) is not False):
                continue
            path.unlink(missing_ok=True)
            removed += 1
        SPOOL_BYTES.set(self._measure())
        return removed

    def _keep_report_alone(self, run: HeldRun, unsent: Unsent) -> None:
        """The disk is full or broken; a report is small, and may fit all the same."""
        try:
            self._write(run, _fit(unsent, 0))
        except OSError:
            # The container is still there, and most that the report says can be had from it again.
            SPOOL_FAILURES.inc()
            log.exception("spool_failed", **run.log_ids)

    def _write(self, run: HeldRun, unsent: Unsent) -> None:
        assert self._directory is not None  # noqa: S101  keep has seen to it.
        self._known.add(str(run.spec.run_id))
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._directory / f"{run.spec.run_id}.{os.getpid()}{DRAFT_SUFFIX}"
        try:
            _write_durably(draft, encode(run, unsent))
            draft.replace(self._path(str(run.spec.run_id)))
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        _sync_directory(self._directory)
        SPOOLED.inc()
        SPOOL_DROPPED.inc(unsent.dropped_bytes)
        SPOOL_BYTES.set(self._measure())
        log.warning("report_spooled", **run.log_ids, dropped_bytes=unsent.dropped_bytes)

    def _path(self, run_id: str) -> Path:
        assert self._directory is not None  # noqa: S101  Callers have seen to it.
        return self._directory / f"{run_id}{SUFFIX}"

    def _measure(self) -> int:
        """The bytes of all files, also those of other executors."""
        return sum(size for _, size, _ in self._scan())

    def _list_old(self) -> list[Path]:
        now = time.time()
        return [path for path, _, changed_at in self._scan() if now - changed_at > SUSPECT_AGE_SECONDS]

    def _scan(self) -> Iterator[tuple[Path, int, float]]:
        if self._directory is None or not self._directory.is_dir():
            return
        for path in sorted(self._directory.iterdir()):
            if path.suffix in (SUFFIX, DRAFT_SUFFIX):
                try:
                    facts = path.stat()
                except FileNotFoundError:
                    continue
                yield path, facts.st_size, facts.st_mtime


def encode(run: HeldRun, unsent: Unsent) -> bytes:
    """The file of a finished run. Pure."""
    head = {
        "v": VERSION,
        "report": finished_fields(run),
        "stored": {
            "nextSeq": unsent.stored.next_seq,
            "stdoutBytes": unsent.stored.stdout_bytes,
            "stderrBytes": unsent.stored.stderr_bytes,
        },
    }
    end = {"end": True, "droppedBytes": unsent.dropped_bytes}
    return b"".join(_encode_record(each) for each in (head, *map(_chunk_record, unsent.chunks), end))


def decode(data: bytes) -> Spooled | None:
    """What a file says as far as it is whole; None when not even its report is. Pure."""
    head, *records = [*_decode_records(data)] or [{"v": None}]
    if head.get("v") != VERSION:
        return None
    stored = read_stored_output(head["stored"])
    assert stored is not None, "written by this version, without it"  # noqa: S101
    # When the end is missing, nobody knows how much it held.
    dropped_bytes = int(records.pop()["droppedBytes"]) if records and "end" in records[-1] else 1
    chunks = [_read_chunk(record) for record in records]
    return Spooled(_read_report(head["report"]), Unsent(stored, chunks, dropped_bytes=dropped_bytes))


def _fit(unsent: Unsent, room_bytes: int) -> Unsent:
    """As much of the output, from its beginning, as goes into the room."""
    kept: list[Chunk] = []
    for chunk in unsent.chunks:
        room_bytes -= len(_encode_record(_chunk_record(chunk)))
        if room_bytes < 0:
            break
        kept.append(chunk)
    dropped = sum(len(chunk.data) for chunk in unsent.chunks[len(kept) :])
    return Unsent(unsent.stored, kept, dropped_bytes=unsent.dropped_bytes + dropped)


def _encode_record(fields: Mapping[str, Any]) -> bytes:
    payload = json.dumps(fields).encode()
    return _HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def _decode_records(data: bytes) -> Iterator[dict[str, Any]]:
    """Up to the first that is cut or damaged."""
    position = 0
    while len(data) - position >= _HEADER.size:
        length, checksum = _HEADER.unpack_from(data, position)
        position += _HEADER.size
        payload = data[position : position + length]
        position += length
        if len(payload) < length or zlib.crc32(payload) != checksum:
            return
        yield json.loads(payload)


def _chunk_record(chunk: Chunk) -> dict[str, Any]:
    return {
        "seq": chunk.seq,
        "stream": chunk.stream,
        "at": format_time(chunk.at),
        "data": base64.b64encode(chunk.data).decode(),
    }


def _read_chunk(record: Mapping[str, Any]) -> Chunk:
    return Chunk(record["seq"], record["stream"], parse_time(record["at"]), base64.b64decode(record["data"]))


def _read_report(fields: Mapping[str, Any]) -> FinishedReport:
    result, started_at, finished_at = fields["result"], fields["startedAt"], fields["finishedAt"]
    return FinishedReport(
        outcome=Outcome(fields["outcome"], fields["reason"], fields["exitCode"], fields["errorMsg"]),
        result=None if result is None else base64.b64decode(result),
        started_at=parse_time(started_at) if started_at else None,
        finished_at=parse_time(finished_at) if finished_at else None,
        image_digest=fields["imageDigest"],
        container_id=fields["containerId"],
        # An earlier version kept none of these.
        usage=Usage(fields.get("maxMemoryMb"), fields.get("cpuSeconds")),
        pulled_seconds=fields.get("pulledSeconds"),
    )


def _write_durably(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    """The file's name is durable only then."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
