"""The steps of one run, in order: pull, create, start, follow, report, remove. Read this file first.

What makes it safe (docs/task-model.md, Safety): the container's name is the task's id, so the engine itself
refuses a second one; only who created a container starts it, once; nothing is created or started on a lease that
may have run out; a run is closed only on proof from the engine; and a container is removed only after its report
was settled, so that until then every crash leaves something to be found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypeVar

import structlog

from libs.common.clock import utc_now
from services.executor import runtime as rt
from services.executor.container_options import container_options
from services.executor.held_run import FinishedReport, HeldRun, StartedReport
from services.executor.meter import UNKNOWN, Usage
from services.executor.metrics import PHASE_DURATION, RUNS
from services.executor.outcome import Outcome, decide_outcome, decide_pull_failure, decide_start_failure
from services.executor.spool import Spooled
from services.executor.tools import Tools

log = structlog.get_logger()

T = TypeVar("T")

# A run that ends sooner is reported once instead of twice.
STARTED_REPORT_DELAY_SECONDS = 0.25

# A daemon that is told to stop gives containers up to 15 s; an exit in that time may be its doing.
ENGINE_STOP_SECONDS = 20.0

# After a crash a daemon that comes back ends what it finds running; that takes it a moment.
ENGINE_RECOVERY_SECONDS = 30.0

# A container that can't be created, whatever the engine says or doesn't say to it, must not be tried for ever.
FRUITLESS_TRIES = 5
FRUITLESS_PAUSE_SECONDS = 1.0

# An earlier run of the task that was given up may still be at work here; the reaper ends it within that time.
LEFTOVER_SECONDS = 90.0
LEFTOVER_PAUSE_SECONDS = 1.0

STOPPED_BEFORE_START = Outcome("cancelled")


class _Ended(Exception):
    """The run's outcome is known, without an exit of its container."""

    def __init__(self, outcome: Outcome, container_id: str | None = None) -> None:
        super().__init__(outcome.reason)
        self.outcome = outcome
        self.container_id = container_id


class _Known(Exception):
    """An earlier process saw the run's end, and kept its report."""

    def __init__(self, spooled: Spooled) -> None:
        super().__init__(spooled.report.outcome.status)
        self.spooled = spooled


class _Adopt(Exception):
    """The run's container is there already: go on from what it is."""

    def __init__(self, state: rt.ContainerState) -> None:
        super().__init__(state.status)
        self.state = state


class _LetGo(Exception):
    """The run isn't, or isn't surely, this executor's: report nothing, touch nothing."""


def _nothing() -> None:
    """Nobody needs to be told."""


class Execution:
    """One run on its way through the steps, in one thread."""

    def __init__(self, run: HeldRun, tools: Tools, *, on_ended: Callable[[], None] = _nothing) -> None:
        """`on_ended` is called when no container of the run is at work any more, before that is reported."""
        self._run = run
        self._on_ended = on_ended
        self._tools = tools
        self._runtime = tools.runtime
        self._gap_began: datetime | None = None
        self._fruitless = 0
        self._leftover_since: float | None = None
        self._attached: Iterator[tuple[rt.Stream, bytes]] | None = None
        # None: whoever pulled, it wasn't this process.
        self._pulled_seconds: float | None = None
        self._metered: str | None = None

    def execute(self) -> None:
        """A run that was claimed: all steps."""
        self._to_the_end(self._create_and_start)

    def adopt(self) -> None:
        """A run whose former holder is gone: whatever steps are left."""
        self._to_the_end(self._take_over)

    def _to_the_end(self, begin: Callable[[], rt.ContainerState | str]) -> None:
        structlog.contextvars.bind_contextvars(**self._run.log_ids)
        try:
            container_id = self._close(begin)
            self._wait_settled()
            self._tools.spool.forget(str(self._run.spec.run_id))
            if container_id is not None:
                self._remove(container_id)
        except _LetGo as reason:
            log.warning("run_let_go", reason=str(reason))
            self._tools.reporter.let_go(self._run)
        finally:
            self._tools.stops.unwatch(self._run)
            self._take_usage()
            structlog.contextvars.clear_contextvars()

    def _close(self, begin: Callable[[], rt.ContainerState | str]) -> str | None:
        """Begin, follow to the end, report. The container's id, None when there is none to be removed."""
        try:
            begun = begin()
            state = self._follow(begun) if isinstance(begun, str) else begun
        except _Known as known:
            self._report_again(known.spooled)
            return known.spooled.report.container_id
        except _Ended as ended:
            self._report(ended.outcome, None, ended.container_id)
            return ended.container_id
        self._tools.stops.unwatch(self._run)
        outcome = decide_outcome(
            state,
            spec=self._run.spec,
            stopped_for=self._run.stopped_for,
            was_killed=self._run.was_killed,
            stderr_tail=self._run.output.stderr_tail,
        )
        self._report(outcome, state, state.container_id)
        return state.container_id

    # Beginning a claimed run.

    def _create_and_start(self) -> rt.ContainerState | str:
        try:
            container_id = self._create()
            self._start(container_id)
        except _Adopt as adopt:
            return self._take_over_container(adopt.state)
        # Whatever was wrong with the engine before is over, and didn't touch this container.
        self._gap_began = None
        log.info("run_started", attempt=self._run.spec.number, container_id=container_id[:12])
        self._watch(container_id, utc_now())
        return container_id

    def _create(self) -> str:
        """The id of a created container; pulls the image when the engine lacks it."""
        spec = self._run.spec
        options = container_options(spec, self._run.epoch, self._tools.settings)
        self._pulled_seconds = 0.0
        pulled = False
        while True:
            self._check_may_begin()
            try:
                with _phase("create"):
                    return self._runtime.create(str(spec.task_id), options)
            except rt.ImageMissing as error:
                if pulled:
                    raise _Ended(decide_start_failure(error)) from error
                pulled = self._pull()
            except rt.NameTaken:
                if (container_id := self._find_created()) is not None:
                    return container_id
            except (rt.EngineUnavailable, rt.EngineFault) as error:
                # It may have been created all the same; the next try finds its name taken then.
                self._count_fruitless(error)
            except (rt.InvalidReference, rt.CommandRefused, rt.EngineRefused) as error:
                raise _Ended(decide_start_failure(error)) from error

    def _count_fruitless(self, error: rt.EngineUnavailable | rt.EngineFault) -> None:
        """Wait until another try may go better. _Ended when there were enough of them.

        A container that exists all the same was never started; the reaper removes it.
        """
        self._fruitless += 1
        if isinstance(error, rt.EngineUnavailable):
            self._wait_engine(error)
        if self._fruitless >= FRUITLESS_TRIES:
            raise _Ended(decide_start_failure(error)) from error
        log.warning("container_not_created", tries=self._fruitless, error=str(error))
        # The first time it is tried again at once: most often the engine was just away.
        self._run.disturbed.wait(FRUITLESS_PAUSE_SECONDS * (2 ** (self._fruitless - 1) - 1))

    def _pull(self) -> bool:
        """False when the engine went away meanwhile."""
        spec = self._run.spec
        log.info("image_pull_started", image=spec.image)
        began = time.monotonic()
        self._run.pulling = True
        try:
            with _phase("pull"):
                self._runtime.pull(spec.image, limit=self._tools.pull_limit, on_open=self._run.while_pulling)
        except rt.PullInterrupted:
            # Released or stopped: the next check says which.
            return True
        except (rt.ImageNotFound, rt.InvalidReference, rt.PullFailed, rt.EngineRefused) as error:
            log.info("image_pull_failed", image=spec.image, error=str(error))
            raise _Ended(decide_pull_failure(error, image=spec.image)) from error
        except rt.EngineUnavailable as error:
            self._count_fruitless(error)
            return False
        finally:
            self._pulled_seconds = (self._pulled_seconds or 0.0) + time.monotonic() - began
            self._run.pulling = False
        return True

    def _find_created(self) -> str | None:
        """What has the task's name already: ours to start, another's to adopt, or a leftover to clear away."""
        state = self._ask(lambda: self._runtime.find(str(self._run.spec.task_id)))
        if state is None:
            return None
        if state.labels.get(rt.LABEL_RUN) == str(self._run.spec.run_id):
            if self._is_own_creation(state):
                return state.container_id
            raise _Adopt(state)
        if not (state.exited or state.never_started):
            self._wait_leftover()
            return None
        try:
            self._ask(lambda: self._runtime.remove(state.container_id))
        except rt.ContainerRuns as error:
            raise _LetGo("another run of the task has just started") from error
        except rt.EngineRefused as error:
            raise _Ended(decide_start_failure(error)) from error
        return None

    def _wait_leftover(self) -> None:
        """A moment for the reaper. To be lost instead would cost a run, and a task has only so many of them."""
        if self._leftover_since is None:
            self._leftover_since = time.monotonic()
            log.warning("leftover_in_the_way")
        if time.monotonic() - self._leftover_since > LEFTOVER_SECONDS:
            raise _LetGo("another run of the task is still running")
        self._run.disturbed.wait(LEFTOVER_PAUSE_SECONDS)

    def _is_own_creation(self, state: rt.ContainerState) -> bool:
        """Created by this process for this epoch, by a create whose answer was lost, and never started."""
        return (
            state.never_started
            and state.labels.get(rt.LABEL_BOOT) == self._tools.settings.boot_id
            and state.labels.get(rt.LABEL_EPOCH) == str(self._run.epoch)
        )

    def _start(self, container_id: str) -> None:
        try:
            self._check_may_begin()
        except _Ended as ended:
            raise _Ended(ended.outcome, container_id) from ended
        self._attach(container_id)
        self._meter(container_id)
        try:
            with _phase("start"):
                self._runtime.start(container_id)
        except rt.ContainerGone as error:
            raise _Ended(_lost("its container was removed before it was started")) from error
        except (rt.CommandRefused, rt.EngineRefused) as error:
            # An engine that says no may still have started it; only a container that never ran is a refusal.
            state = self._ask(lambda: self._runtime.find(container_id))
            if state is not None and not state.never_started:
                raise _Adopt(state) from error
            raise _Ended(decide_start_failure(error), container_id) from error
        except rt.EngineUnavailable as error:
            # Never start twice: see what came of it, as an adopter does.
            self._wait_engine(error)
            raise _Adopt(self._get_state(container_id)) from error

    def _attach(self, container_id: str) -> None:
        """Have the output come here from its first byte. Without it the engine's copy is followed instead."""
        with suppress(rt.EngineUnavailable, rt.EngineRefused, rt.ContainerGone):
            self._attached = self._runtime.attach(container_id, on_open=self._run.while_following)

    def _check_may_begin(self) -> None:
        """Whether a container may be created or started now. _Ended when the run was stopped, else _LetGo."""
        if self._run.released:
            raise _LetGo("released")
        if self._run.stop_asked is not None:
            raise _Ended(STOPPED_BEFORE_START)
        if not self._run.lease_is_fresh:
            raise _LetGo("the lease may have run out")

    # Taking over.

    def _take_over(self) -> rt.ContainerState | str:
        if (spooled := self._tools.spool.find(str(self._run.spec.run_id))) is not None:
            raise _Known(spooled)
        state = self._ask(lambda: self._runtime.find(str(self._run.spec.task_id)))
        if state is None or state.labels.get(rt.LABEL_RUN) != str(self._run.spec.run_id):
            raise _Ended(_lost("no container of it was found"))
        return self._take_over_container(state)

    def _take_over_container(self, state: rt.ContainerState) -> rt.ContainerState | str:
        """Follow what runs, collect what exited, remove what was never started."""
        log.info("run_adopted", container_status=state.status, container_id=state.container_id[:12])
        if state.never_started:
            try:
                self._ask(lambda: self._runtime.remove(state.container_id))
            except rt.ContainerRuns:
                # Its creator was just starting it.
                state = self._get_state(state.container_id)
            except rt.EngineRefused as error:
                raise _Ended(_lost(str(error)), state.container_id) from error
            else:
                raise _Ended(_lost("its container was never started"))
        self._check_exit_across_engine_start(state)
        if not state.exited:
            self._meter(state.container_id)
            self._watch(state.container_id, state.started_at or utc_now())
        return state.container_id

    def _check_exit_across_engine_start(self, state: rt.ContainerState) -> None:
        """An exit that nobody followed, from before this daemon began, may be the former daemon's end."""
        engine_began = self._tools.engine.started_at
        if not state.exited or engine_began is None or state.finished_at is None or state.oom_killed:
            return
        if state.finished_at < engine_began + timedelta(seconds=ENGINE_RECOVERY_SECONDS):
            raise _Ended(_lost("the container engine stopped while it ran"), state.container_id)

    # Following.

    def _watch(self, container_id: str, started_at: datetime) -> None:
        due = time.monotonic() + STARTED_REPORT_DELAY_SECONDS
        report = StartedReport(container_id, started_at, due, self._pulled_seconds)
        self._tools.reporter.report_started(self._run, report)
        self._tools.stops.watch(self._run, container_id=container_id, started_at=started_at)

    def _follow(self, container_id: str) -> rt.ContainerState:
        """Take all output until the container has exited; its last state."""
        pauses = _pauses()
        with _phase("run"):
            while True:
                complete = self._read_output(container_id)
                state = self._get_state(container_id)
                if state.exited:
                    # A stream that the engine took down with it ends like one that is complete.
                    if not complete or self._gap_began is not None:
                        self._read_copy(container_id)
                    self._check_exit_across_gap(state)
                    return state
                # It still runs: whatever went wrong with the engine did not end it.
                self._gap_began = None
                self._run.closed.wait(next(pauses))

    def _read_output(self, container_id: str) -> bool:
        """Take what the container writes. True when all of it has come."""
        attached, self._attached = self._attached, None
        if attached is not None:
            return self._take_output(attached)
        self._read_copy(container_id)
        # The copy may lack what was written just before the end.
        return False

    def _read_copy(self, container_id: str) -> None:
        """Take what the engine kept, skipping what has been seen."""
        self._run.output.begin_follow()
        with suppress(rt.ContainerGone):
            self._take_output(self._follow_copy(container_id))

    def _follow_copy(self, container_id: str) -> Iterator[tuple[rt.Stream, bytes]]:
        yield from self._runtime.follow(container_id, on_open=self._run.while_following)

    def _take_output(self, output: Iterator[tuple[rt.Stream, bytes]]) -> bool:
        """False when the engine broke it off."""
        ended = False
        try:
            for stream, data in output:
                self._run.output.append(stream, data)
            ended = True
        except rt.EngineUnavailable as error:
            self._wait_engine(error)
        if self._run.released:
            raise _LetGo("released")
        return ended

    def _check_exit_across_gap(self, state: rt.ContainerState) -> None:
        """A daemon that goes down takes its containers with it; that exit is not the command's own."""
        if self._gap_began is None or state.finished_at is None or state.oom_killed:
            return
        if state.finished_at > self._gap_began - timedelta(seconds=ENGINE_STOP_SECONDS):
            raise _Ended(_lost("the container engine stopped while it ran"), state.container_id)

    def _get_state(self, container_id: str) -> rt.ContainerState:
        state = self._ask(lambda: self._runtime.find(container_id))
        if state is None:
            raise _Ended(_lost("its container was removed by someone else"))
        return state

    # Closing.

    def _report(self, outcome: Outcome, state: rt.ContainerState | None, container_id: str | None) -> None:
        self._tools.stops.unwatch(self._run)
        if self._run.released:
            raise _LetGo("released")
        usage = self._take_usage()
        if outcome.reason == "oom_killed":
            # It was killed for wanting more than all that it might have.
            usage = replace(usage, max_memory_mb=self._run.spec.memory_mb)
        RUNS.labels(outcome.status, outcome.reason or "").inc()
        log.info("run_finished", outcome=outcome.status, reason=outcome.reason, exit_code=outcome.exit_code)
        report = FinishedReport(
            outcome=outcome,
            result=self._run.output.result if state else None,
            started_at=state.started_at if state else None,
            finished_at=_get_end(state) if state else None,
            image_digest=self._find_digest(state) if state else None,
            container_id=container_id,
            usage=usage,
            pulled_seconds=self._pulled_seconds,
        )
        self._on_ended()
        self._tools.reporter.report_finished(self._run, report)
        self._tools.spool.watch(self._run)

    def _report_again(self, spooled: Spooled) -> None:
        """Hand over what was known before a restart. It was taken from the engine then, and holds still."""
        if self._run.released:
            raise _LetGo("released")
        log.info("report_restored", outcome=spooled.report.outcome.status, reason=spooled.report.outcome.reason)
        self._run.output.restore(spooled.unsent)
        self._on_ended()
        self._tools.reporter.report_finished(self._run, spooled.report)

    def _find_digest(self, state: rt.ContainerState) -> str:
        return self._ask(lambda: self._runtime.find_image(state.image_id)) or state.image_id

    def _wait_settled(self) -> None:
        with _phase("report"):
            self._run.closed.wait()
        if not self._run.settled:
            raise _LetGo("released")

    def _remove(self, container_id: str) -> None:
        try:
            with _phase("remove"):
                self._ask(lambda: self._runtime.remove(container_id))
        except (rt.ContainerRuns, rt.EngineRefused) as error:
            # The run is closed; the reaper comes by later.
            log.warning("container_not_removed", error=str(error))

    # What it uses.

    def _meter(self, container_id: str) -> None:
        self._metered = container_id
        self._tools.meter.watch(container_id)

    def _take_usage(self) -> Usage:
        metered, self._metered = self._metered, None
        return UNKNOWN if metered is None else self._tools.meter.take(metered)

    # Waiting for the engine.

    def _ask(self, call: Callable[[], T]) -> T:
        """Repeat a call that is harmless to repeat until the engine answers."""
        while True:
            try:
                return call()
            except rt.EngineUnavailable as error:
                self._wait_engine(error)

    def _wait_engine(self, error: rt.EngineUnavailable) -> None:
        if self._run.released:
            raise _LetGo("released") from error
        if self._gap_began is None:
            self._gap_began = utc_now()
        log.warning("engine_unavailable", error=str(error))
        self._tools.engine.lost(error)
        while not self._tools.engine.wait_up(1.0):
            if self._run.released:
                raise _LetGo("released") from error


def _get_end(state: rt.ContainerState) -> datetime | None:
    """The engine notes both times apart; of a container that lives a few milliseconds, the end may be first."""
    if state.finished_at is None or state.started_at is None:
        return state.finished_at
    return max(state.started_at, state.finished_at)


def _lost(why: str) -> Outcome:
    return Outcome("lost", error_msg=f"The run was lost: {why}.")


def _pauses() -> Iterator[float]:
    """A follow that ends before its container is rare; look again soon, then less often."""
    seconds = 0.02
    while True:
        yield seconds
        seconds = min(1.0, seconds * 2)


@contextmanager
def _phase(name: str) -> Iterator[None]:
    with PHASE_DURATION.labels(name).time():
        yield
