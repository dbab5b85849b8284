"""One process of an executor: the steps of services/executor/execution.py and sync.py, one call at a time.

Between a check and the call that it allows, anything may happen: the process may be stopped for as long as one
likes there, and it then makes the call without another check.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from services.scheduler.run_store import Executor, Finished, Held, Report, Started, SyncRequest
from services.scheduler.states import Outcome
from services.scheduler.tests.model.engine import Container, Engine, NameTaken, State

SLOTS = 2
# services/executor/held_run.py: nothing is created or started on a lease that is older.
LEASE_FRESH = timedelta(seconds=25)


class Phase(StrEnum):
    CLAIMED = "claimed"
    CREATING = "may create"
    CREATED = "created"
    STARTING = "may start"
    ADOPTING = "adopting"
    REMOVING = "saw it created by another"
    FOLLOWING = "following"
    REPORTING = "has ended"
    CLEARING = "settled"


CALLS = (Phase.CREATING, Phase.STARTING)


class CallFate(StrEnum):
    """What becomes of a create or a start."""

    DONE = "done"
    UNANSWERED = "done, its answer lost"
    LATE = "done later, without an answer"


@dataclass(slots=True, kw_only=True, eq=False)
class Run:
    """A run in this process's hands. `released`: the scheduler has given it to another."""

    run_id: UUID
    task_id: UUID
    epoch: int
    phase: Phase
    renewed_at: datetime
    container: Container | None = None
    released: bool = False
    stop_asked: bool = False
    start_reported: bool = False
    outcome: Outcome | None = None
    exit_code: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """A sync on its way."""

    process: Process
    body: SyncRequest
    sent_at: datetime
    held: Sequence[Run]


class Process:
    """`frozen`: stopped, as by SIGSTOP. `waiting`: the sync that hasn't been answered yet, one at a time."""

    def __init__(self, executor_id: str, boot_id: str, engine: Engine, *, adopter_starts: bool = False) -> None:
        self.executor_id = executor_id
        self.boot_id = boot_id
        self.engine = engine
        self.frozen = False
        self.replaced = False
        self.waiting: Request | None = None
        self.answer: dict[str, Any] | None = None
        self.claims: list[UUID] = []
        self.runs: list[Run] = []
        self._adopter_starts = adopter_starts

    @property
    def free_slots(self) -> int:
        return 0 if self.replaced else SLOTS - len(self.claims) - len(self.runs)

    @property
    def held(self) -> list[Run]:
        return [run for run in self.runs if not run.released and run.phase != Phase.CLEARING]

    # The conversation with the scheduler.

    def take_message(self, run_id: UUID) -> None:
        if run_id not in self.claims and all(run.run_id != run_id for run in self.held):
            self.claims.append(run_id)

    def send(self, now: datetime) -> Request:
        held = self.held
        self.waiting = Request(
            process=self,
            sent_at=now,
            held=held,
            body=SyncRequest(
                executor=Executor(
                    id=self.executor_id,
                    boot_id=self.boot_id,
                    engine_id=self.engine.name,
                    host="host",
                    slots=SLOTS,
                    running=len(held),
                ),
                claims=list(self.claims),
                held=[Held(run_id=run.run_id, epoch=run.epoch) for run in held],
                reports=[report for run in held if (report := _make_report(run, now)) is not None],
                logs=[],
            ),
        )
        return self.waiting

    def give_up_waiting(self) -> None:
        self.waiting = self.answer = None

    def hear(self, request: Request, answer: dict[str, Any]) -> None:
        """Take the answer, as Sync._apply."""
        self.give_up_waiting()
        released = {(each["runId"], each["epoch"]) for each in answer["released"]}
        settled = {(each["runId"], each["epoch"], each["event"]) for each in answer["reports"]}
        for run in request.held:
            key = (str(run.run_id), run.epoch)
            if key in released:
                run.released = True
            else:
                run.renewed_at = max(run.renewed_at, request.sent_at)
            run.start_reported |= (*key, "started") in settled
            if (*key, "finished") in settled:
                run.phase = Phase.CLEARING
        for each in answer["claims"]:
            self._hear_claim(each, request)
        for each in answer["stop"]:
            for run in self.held:
                run.stop_asked |= (str(run.run_id), run.epoch) == (each["runId"], each["epoch"])
        for each in answer["adopt"]:
            self._hear_adoption(each, request)

    def hear_that_it_was_replaced(self) -> None:
        self.give_up_waiting()
        self.replaced = True
        self.claims = []
        for run in self.runs:
            run.released = True

    def _hear_claim(self, each: dict[str, Any], request: Request) -> None:
        run_id = UUID(each["runId"])
        if run_id not in self.claims:
            return
        self.claims.remove(run_id)
        if each["granted"]:
            self.runs.append(_make_run(each, Phase.CLAIMED, request.sent_at))

    def _hear_adoption(self, each: dict[str, Any], request: Request) -> None:
        run = _make_run(each, Phase.ADOPTING, request.sent_at)
        same = [other for other in self.held if other.run_id == run.run_id]
        if any(other.epoch == run.epoch for other in same):
            return
        for other in same:
            other.released = True
        self.runs.append(run)

    # The steps of a run.

    def step(self, run: Run, now: datetime, fate: CallFate) -> None:
        """The next step. A released run is dropped, but for a call that was allowed before."""
        if run.phase == Phase.CREATING:
            self._create(run, fate)
        elif run.phase == Phase.STARTING:
            self._start(run, fate)
        elif run.phase == Phase.CLEARING:
            if run.container is not None:
                self.engine.remove(run.container)
            self.runs.remove(run)
        elif run.released:
            self.runs.remove(run)
        elif run.phase in (Phase.CLAIMED, Phase.CREATED):
            self._check_may_begin(run, now)
        elif run.phase == Phase.ADOPTING:
            self._take_over(run)
        elif run.phase == Phase.REMOVING:
            self._remove_unstarted(run)
        elif run.phase == Phase.FOLLOWING:
            self._follow(run)

    def let_call_happen_late(self) -> None:
        """The process is about to die; what it asked the engine for last is still done."""
        for run in self.runs:
            if run.phase == Phase.CREATING:
                self._create(run, CallFate.LATE)
            elif run.phase == Phase.STARTING:
                self._start(run, CallFate.LATE)

    def _check_may_begin(self, run: Run, now: datetime) -> None:
        if run.stop_asked:
            _end(run, Outcome.CANCELLED)
        elif now - run.renewed_at >= LEASE_FRESH:
            self.runs.remove(run)
        else:
            run.phase = Phase.CREATING if run.phase == Phase.CLAIMED else Phase.STARTING

    def _create(self, run: Run, fate: CallFate) -> None:
        if fate == CallFate.LATE:
            self.engine.late.append(lambda: self._try_create(run))
            run.phase = Phase.CLAIMED
            return
        try:
            container = self._try_create(run)
        except NameTaken:
            self._look_at_name(run)
            return
        # An answer that was lost is looked for: the next try finds the name taken.
        if fate == CallFate.UNANSWERED:
            run.phase = Phase.CLAIMED
        else:
            run.container, run.phase = container, Phase.CREATED

    def _try_create(self, run: Run) -> Container:
        return self.engine.create(run.task_id, run_id=run.run_id, epoch=run.epoch, boot_id=self.boot_id)

    def _look_at_name(self, run: Run) -> None:
        found = self.engine.find(run.task_id)
        if found is None:
            run.phase = Phase.CLAIMED
        elif found.run_id == run.run_id:
            own = (found.state, found.boot_id, found.epoch) == (State.CREATED, self.boot_id, run.epoch)
            run.container, run.phase = found, Phase.CREATED
            if not own:
                self._take_over_container(run)
        elif self.engine.remove(found):
            run.phase = Phase.CLAIMED
        else:
            self.runs.remove(run)

    def _start(self, run: Run, fate: CallFate) -> None:
        container = run.container
        assert container is not None
        if fate == CallFate.LATE:
            self.engine.late.append(lambda: self.engine.start(container))
            run.phase = Phase.ADOPTING
        elif not self.engine.start(container):
            _end(run, Outcome.LOST)
        else:
            run.phase = Phase.ADOPTING if fate == CallFate.UNANSWERED else Phase.FOLLOWING

    def _take_over(self, run: Run) -> None:
        found = run.container or self.engine.find(run.task_id)
        if found is None or found.removed or found.run_id != run.run_id:
            _end(run, Outcome.LOST)
            return
        run.container = found
        self._take_over_container(run)

    def _take_over_container(self, run: Run) -> None:
        assert run.container is not None
        run.phase = Phase.REMOVING if run.container.state == State.CREATED else Phase.FOLLOWING

    def _remove_unstarted(self, run: Run) -> None:
        assert run.container is not None
        if self._adopter_starts and self.engine.start(run.container):
            run.phase = Phase.FOLLOWING
        elif self.engine.remove(run.container):
            _end(run, Outcome.LOST)
        else:
            run.phase = Phase.FOLLOWING

    def _follow(self, run: Run) -> None:
        container = run.container
        assert container is not None
        if container.removed:
            _end(run, Outcome.LOST)
            return
        if run.stop_asked:
            self.engine.end(container, 137)
        if container.state == State.EXITED:
            _end(run, _decide_outcome(run, container), container.exit_code)


def _make_run(each: dict[str, Any], phase: Phase, sent_at: datetime) -> Run:
    return Run(
        run_id=UUID(each["runId"]),
        task_id=UUID(each["task"]["taskId"]),
        epoch=each["epoch"],
        phase=phase,
        renewed_at=sent_at,
    )


def _decide_outcome(run: Run, container: Container) -> Outcome:
    if run.stop_asked:
        return Outcome.CANCELLED
    return Outcome.COMPLETED if container.exit_code == 0 else Outcome.FAILED


def _end(run: Run, outcome: Outcome, exit_code: int | None = None) -> None:
    run.outcome, run.exit_code, run.phase = outcome, exit_code, Phase.REPORTING


def _make_report(run: Run, now: datetime) -> Report | None:
    if run.phase == Phase.REPORTING and run.outcome is not None:
        return Finished(
            run_id=run.run_id,
            epoch=run.epoch,
            outcome=run.outcome,
            reason="exit_nonzero" if run.outcome == Outcome.FAILED else None,
            exit_code=run.exit_code,
            error_msg=None,
            result=None,
            started_at=None if run.exit_code is None else now,
            finished_at=now,
            image_digest=None,
            container_id=None,
            max_memory_mb=None,
        )
    if run.phase == Phase.FOLLOWING and not run.start_reported:
        return Started(run_id=run.run_id, epoch=run.epoch, started_at=now, container_id=None, image_digest=None)
    return None
