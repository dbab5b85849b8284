"""The one conversation with the scheduler: claims, leases, reports and output, many in one request.

One request is under way at a time; what comes up meanwhile goes with the next one (docs/task-model.md, Claim).
Everything is sent again until the scheduler has answered it, and the scheduler takes each thing once.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

import structlog

from libs.common import failpoints
from libs.common.clock import utc_now
from services.executor.held_run import FinishedReport, HeldRun, StartedReport
from services.executor.metrics import SYNC_DURATION
from services.executor.output import CAP_BYTES, Output
from services.executor.scheduler_client import JsonObject, Replaced, SchedulerAway
from services.executor.spec import StoredOutput, TaskSpec, read_stored_output, read_task_spec
from services.executor.sync_request import Claim, Grant, Identity, Request, build_request

log = structlog.get_logger()

# A stop request reaches a container with the next answer, and must within 2 s.
BUSY_INTERVAL_SECONDS = 1.0
IDLE_INTERVAL_SECONDS = 5.0
# Somebody may be watching: what is printed after a silence goes soon, what is printed on and on in larger pieces.
# The first of it goes together with the report of the start, and that of a short run with its end.
OUTPUT_SOON_SECONDS = 0.25
OUTPUT_EVERY_SECONDS = 0.5
GATHER_SECONDS = 0.02
FIRST_BACKOFF_SECONDS = 0.2
LAST_BACKOFF_SECONDS = 5.0

QUESTIONS_AT_ONCE = 200
QUESTIONS_KEPT = 5000

# Without the scheduler's word an adopter can't know which numbers its predecessor used: it takes its own range.
SEQUENCES_PER_EPOCH = 1 << 20

Post = Callable[[JsonObject], JsonObject]


@dataclass(frozen=True, slots=True)
class Adoption:
    """A run that the scheduler gives to this executor because its former holder is gone."""

    run: HeldRun
    was_running: bool


class Listener(Protocol):
    """What the sync tells the rest of the executor; called from the sync's thread, must not block."""

    def adopt(self, adoption: Adoption) -> None: ...

    def stop_requested(self, run: HeldRun) -> None: ...

    def prefetch(self, images: Sequence[str]) -> None: ...

    def replaced(self) -> None: ...

    def drain_changed(self) -> None: ...


class Sync:
    """The state of the conversation. `run` is the thread's loop; the other methods are for any thread."""

    def __init__(
        self,
        *,
        identity: Identity,
        post: Post,
        listener: Listener,
        now: Callable[[], datetime] = utc_now,
        output_cap_bytes: int = CAP_BYTES,
    ) -> None:
        """`now` is the engine's time, which dates output; `output_cap_bytes`, how much of each run's is kept."""
        self._identity = identity
        self._now = now
        self._post = post
        self._listener = listener
        self._output_cap_bytes = output_cap_bytes
        self._output_sent_at = float("-inf")
        self._condition = threading.Condition()
        self._due = 0.0
        self._claims: dict[str, Claim] = {}
        self._held: dict[tuple[str, int], HeldRun] = {}
        # How many of them are of each run: of one that was taken over here, two epochs may be held for a moment.
        self._held_ids: Counter[str] = Counter()
        # Granted claims whose task this executor can't read: nothing of them was ever created.
        self._unusable: set[tuple[str, int]] = set()
        self._questions: dict[str, bool | None] = {}
        self._succeeded_at: float | None = None
        self._first_success = threading.Event()
        self._ended = False
        self.replaced = False
        # The operator wants it to finish what it has, and to take nothing more.
        self.draining = False

    @property
    def held_count(self) -> int:
        """Runs that aren't settled yet."""
        return len(self._held)

    @property
    def running_count(self) -> int:
        """Runs that may have a container at work."""
        with self._condition:
            return sum(run.finished is None for run in self._held.values())

    def list_unsettled(self) -> list[HeldRun]:
        """Runs that have ended, whose report the scheduler hasn't taken yet."""
        with self._condition:
            return [run for run in self._held.values() if run.finished is not None]

    @property
    def age_seconds(self) -> float | None:
        """Seconds since the last answer, None before the first."""
        at = self._succeeded_at
        return None if at is None else time.monotonic() - at

    def holds(self, run_id: str) -> bool:
        with self._condition:
            return run_id in self._held_ids

    def break_stream(self, run_id: str) -> None:
        """Have the run's thread look at its container instead of waiting for more output."""
        with self._condition:
            following = [run for run in self._held.values() if str(run.spec.run_id) == run_id and not run.finished]
        for run in following:
            log.warning("stream_broken_off", **run.log_ids)
            run.break_stream()

    def wait_first(self, seconds: float) -> bool:
        """True when the scheduler has answered once."""
        return self._first_success.wait(seconds)

    def claim(self, run_id: UUID, on_answer: Callable[[Grant], None]) -> None:
        """Ask for the run; `on_answer` is called when the scheduler has answered, however long it is away.

        It is called in the sync's thread, or at once, and must not block.
        """
        key = str(run_id)
        with self._condition:
            # The scheduler grants a repeated claim again, because the first answer may have been lost on its way.
            is_known = key in self._claims or key in self._held_ids
            if not is_known:
                self._claims[key] = Claim(run_id, on_answer)
        if is_known:
            on_answer(Grant(refusal="held_here"))
        else:
            self.wake()

    def report_started(self, run: HeldRun, report: StartedReport) -> None:
        run.started = report
        self.wake(report.due - time.monotonic())

    def report_finished(self, run: HeldRun, report: FinishedReport) -> None:
        """Hand the report over; `run.wait_closed` tells when it is settled."""
        run.started = None
        run.finished = report
        # The slot's next message is on its way: its claim can travel in the same request.
        self.wake(GATHER_SECONDS)

    def let_go(self, run: HeldRun) -> None:
        """Stop renewing the lease: who is told so by the scheduler takes over when it has run out."""
        self._drop(run)

    def ask_live(self, run_id: str) -> bool | None:
        """Whether the scheduler knows this run as live, whoever holds it; None until it has answered.

        The question goes with the next sync; ask again to see the answer.
        """
        with self._condition:
            if run_id not in self._questions:
                if len(self._questions) >= QUESTIONS_KEPT:
                    # Answers that nobody came back for: their containers are gone.
                    self._questions.clear()
                self._questions[run_id] = None
                return None
            answer = self._questions[run_id]
            if answer is not None:
                del self._questions[run_id]
            return answer

    def hint(self, executor_id: str) -> None:
        """The named executor has something to stop; "" when such a word may have been lost."""
        if executor_id in ("", self._identity.executor_id):
            self.wake()

    def wake(self, delay: float = 0.0) -> None:
        """Sync within `delay` seconds."""
        due = time.monotonic() + max(0.0, delay)
        with self._condition:
            if due < self._due:
                self._due = due
                self._condition.notify()

    def end(self) -> None:
        """End the loop after the request that is under way."""
        with self._condition:
            self._ended = True
            self._condition.notify()

    def run(self) -> None:
        """Sync for ever; a scheduler that is away is asked again with growing pauses."""
        failures = 0
        while not self._ended:
            try:
                self.run_once()
            except Replaced as error:
                failures += 1
                self._give_up(error)
            except SchedulerAway as error:
                failures += 1
                log.warning("sync_failed", failures=failures, error=str(error))
            except Exception:
                failures += 1
                log.exception("sync_broken", failures=failures)
            else:
                failures = 0
            self._sleep(failures)

    def run_once(self) -> None:
        """One request and its answer. SchedulerAway when there was none; all of it is sent again then.

        Replaced when the scheduler will never answer this process again.
        """
        request = self._build()
        with SYNC_DURATION.time():
            answer = self._post(request.body)
        self._apply(request, answer)
        self._succeeded_at = time.monotonic()
        self._first_success.set()

    def _drop(self, run: HeldRun) -> None:
        with self._condition:
            if self._held.pop(run.key, None) is not None:
                self._held_ids[run.key[0]] -= 1
                if not self._held_ids[run.key[0]]:
                    del self._held_ids[run.key[0]]

    def _give_up(self, error: Replaced) -> None:
        """Let everything go, once. To leave would make the two replace each other for ever."""
        if self.replaced:
            return
        self.replaced = True
        log.error("executor_replaced", executor_id=self._identity.executor_id, error=str(error))
        with self._condition:
            held = list(self._held.values())
        for run in held:
            self._release(run)
        self._listener.replaced()

    def _sleep(self, failures: int) -> None:
        with self._condition:
            if failures:
                pause = min(LAST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** min(failures - 1, 10))
                until = time.monotonic() + pause * random.uniform(0.5, 1.0)  # noqa: S311  Only spreads load.
                self._condition.wait_for(lambda: self._ended, until - time.monotonic())
                return
            while not self._ended and (left := self._due - time.monotonic()) > 0:
                self._condition.wait(left)

    def _build(self) -> Request:
        now = time.monotonic()
        with self._condition:
            claims = list(self._claims.values())
            held = list(self._held.values())
            unusable = list(self._unusable)
            asked = [run_id for run_id, answer in self._questions.items() if answer is None]
            waiting = [run.started.due for run in held if run.started is not None and run.started.due > now]
            self._due = min([now + (BUSY_INTERVAL_SECONDS if held else IDLE_INTERVAL_SECONDS), *waiting])
        request = build_request(
            self._identity,
            claims=claims,
            held=held,
            unusable=unusable,
            questions=asked[:QUESTIONS_AT_ONCE],
            now=now,
        )
        if request.body["logs"]:
            self._output_sent_at = now
        if any(not run.output.drained for run in held):
            self.wake()
        return request

    def _apply(self, request: Request, answer: JsonObject) -> None:
        self._note_drain(draining=bool(answer.get("draining")))
        released = {(each["runId"], each["epoch"]) for each in answer.get("released") or ()}
        settled = {(each["runId"], each["epoch"], each["event"]): each for each in answer.get("reports") or ()}
        for run in request.held:
            run.output.confirm()
            if run.key not in released:
                run.renew(request.sent_at)
        self._settle(request, settled)
        for run in request.held:
            if run.key in released and not run.settled:
                self._release(run)
        self._answer_claims(request, answer)
        self._note_answers(answer)
        self._request_stops(answer)
        for each in answer.get("adopt") or ():
            self._adopt(each, request.sent_at)
        if images := answer.get("prefetch"):
            self._listener.prefetch(images)

    def _note_drain(self, *, draining: bool) -> None:
        """Before the claims are answered: what is given back then must not be offered a place here again."""
        if draining != self.draining:
            self.draining = draining
            log.info("executor_drains" if draining else "executor_takes_runs_again")
            self._listener.drain_changed()

    def _settle(self, request: Request, settled: Mapping[tuple[str, int, str], JsonObject]) -> None:
        for run, report in request.started:
            if (*run.key, "started") in settled and run.started is report:
                run.started = None
                failpoints.reach("start_reported")
        for run in request.finished:
            answer = settled.get((*run.key, "finished"))
            if answer is None:
                continue
            if not answer["accepted"]:
                log.warning("report_not_accepted", **run.log_ids, epoch=run.epoch)
            self._drop(run)
            run.settle()
        with self._condition:
            self._unusable -= {key for key in request.unusable if (*key, "finished") in settled}

    def _release(self, run: HeldRun) -> None:
        log.warning("run_released", **run.log_ids, epoch=run.epoch)
        self.let_go(run)
        run.release()

    def _answer_claims(self, request: Request, answer: JsonObject) -> None:
        asked = {str(claim.run_id): claim for claim in request.claims}
        for each in answer.get("claims") or ():
            claim = asked.get(each["runId"])
            if claim is None:
                continue
            spec = self._read_spec(each) if each["granted"] else None
            if not each["granted"]:
                grant = Grant(refusal=str(each.get("reason") or "refused"))
            elif spec is None:
                grant = Grant(refusal="unreadable")
                with self._condition:
                    self._unusable.add((each["runId"], int(each["epoch"])))
                self.wake()
            else:
                output = self._open_output()
                grant = Grant(run=self._hold(spec, int(each["epoch"]), output, request.sent_at))
            with self._condition:
                self._claims.pop(each["runId"], None)
            claim.on_answer(grant)

    def _note_answers(self, answer: JsonObject) -> None:
        with self._condition:
            for each in answer.get("answers") or ():
                if each["runId"] in self._questions:
                    self._questions[each["runId"]] = bool(each["live"])

    def _request_stops(self, answer: JsonObject) -> None:
        for each in answer.get("stop") or ():
            with self._condition:
                run = self._held.get((each["runId"], each["epoch"]))
            if run is not None and run.stop_asked is None:
                run.ask_stop("cancelled")
                self._listener.stop_requested(run)

    def _adopt(self, each: JsonObject, sent_at: float) -> None:
        spec, epoch = self._read_spec(each), int(each["epoch"])
        if spec is None:
            return
        with self._condition:
            if (str(spec.run_id), epoch) in self._held:
                return
            former = [run for run in self._held.values() if run.spec.run_id == spec.run_id]
        for run in former:
            self._release(run)
        stored: StoredOutput | None = read_stored_output(each.get("logs"))
        output = self._open_output(stored=stored, next_seq=epoch * SEQUENCES_PER_EPOCH)
        run = self._hold(spec, epoch, output, sent_at)
        self._listener.adopt(Adoption(run=run, was_running=bool(each.get("wasRunning"))))

    def _open_output(self, *, stored: StoredOutput | None = None, next_seq: int = 0) -> Output:
        return Output(
            on_pending=self._output_pending,
            stored=stored,
            next_seq=next_seq,
            now=self._now,
            cap_bytes=self._output_cap_bytes,
        )

    def _hold(self, spec: TaskSpec, epoch: int, output: Output, sent_at: float) -> HeldRun:
        run = HeldRun(spec=spec, epoch=epoch, output=output, renewed_at=sent_at)
        with self._condition:
            self._held[run.key] = run
            self._held_ids[run.key[0]] += 1
        return run

    @staticmethod
    def _read_spec(each: JsonObject) -> TaskSpec | None:
        try:
            return read_task_spec(each["task"])
        except (KeyError, ValueError, TypeError):
            # Both sides come from one release, so a person must look; one bad run must not stop all others.
            log.exception("task_unreadable", run_id=each.get("runId"))
            return None

    def _output_pending(self) -> None:
        next_at = self._output_sent_at + OUTPUT_EVERY_SECONDS
        self.wake(max(OUTPUT_SOON_SECONDS, next_at - time.monotonic()))
