"""The steps of one run, in order: pull, create, start, follow, report, remove. Read this file first.

What makes it safe (docs/task-model.md, Safety): the container's name is the task's id, so the engine itself
refuses a second one; only who created a container starts it, once; nothing is created or started on a lease that
may have run out; a run is closed only on proof from the engine; and a container is removed only after its report
was settled, so that until then every crash leaves something to be found.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime

import structlog

from libs.common import failpoints
from services.executor import runtime as rt
from services.executor.asking import Asking, LetGo, NoAnswer
from services.executor.container_options import container_options
from services.executor.following import Ended, Following, lost
from services.executor.held_run import FinishedReport, HeldRun, StartedReport
from services.executor.meter import UNKNOWN, Usage
from services.executor.metrics import PHASES, RUNS
from services.executor.outcome import (
    Outcome,
    decide_name_taken,
    decide_outcome,
    decide_pull_failure,
    decide_start_failure,
)
from services.executor.spool import Spooled
from services.executor.tools import Tools

log = structlog.get_logger()

# A run that ends sooner is reported once instead of twice.
STARTED_REPORT_DELAY_SECONDS = 0.25

# A container that can't be created, whatever the engine says or doesn't say to it, must not be tried for ever.
FRUITLESS_TRIES = 5
FRUITLESS_PAUSE_SECONDS = 1.0

# An earlier run of the task that was given up may still be at work here; the reaper ends it within that time.
LEFTOVER_SECONDS = 90.0
LEFTOVER_PAUSE_SECONDS = 1.0

STOPPED_BEFORE_START = Outcome("cancelled")


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
        self._asking = Asking(run, tools.engine)
        self._following = Following(run, tools, self._asking)
        self._fruitless = 0
        self._name_taken_since: float | None = None
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
            failpoints.reach("container_not_removed")
            self._tools.spool.forget(str(self._run.spec.run_id))
            if container_id is not None:
                self._remove(container_id)
        except LetGo as reason:
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
        except Ended as ended:
            self._report(ended.outcome, None, ended.container_id)
            return ended.container_id
        failpoints.reach("container_exited")
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
        self._asking.gap_began = None
        failpoints.reach("container_started")
        log.info("run_started", attempt=self._run.spec.number, container_id=container_id[:12])
        self._watch(container_id, self._tools.engine.now())
        return container_id

    def _create(self) -> str:
        """The id of a created container; pulls the image when the engine lacks it."""
        spec = self._run.spec
        options = container_options(spec, self._run.epoch, self._tools.settings)
        self._pulled_seconds = 0.0
        pulled = False
        while True:
            self._check_may_begin()
            failpoints.reach("container_not_created")
            try:
                with PHASES["create"].time():
                    return self._runtime.create(str(spec.task_id), options)
            except rt.ImageMissing as error:
                if pulled:
                    raise Ended(decide_start_failure(error)) from error
                pulled = self._pull()
            except rt.NameTaken as error:
                if (container_id := self._find_created(error)) is not None:
                    return container_id
            except (rt.EngineUnavailable, rt.EngineFault) as error:
                # It may have been created all the same; the next try finds its name taken then.
                self._count_fruitless(error)
            except (rt.InvalidReference, rt.CommandRefused, rt.EngineRefused) as error:
                raise Ended(decide_start_failure(error)) from error

    def _count_fruitless(self, error: rt.EngineUnavailable | rt.EngineFault) -> None:
        """Wait until another try may go better. Ended when there were enough of them.

        A container that exists all the same was never started; the reaper removes it.
        """
        self._fruitless += 1
        if isinstance(error, rt.EngineUnavailable):
            self._asking.wait(error)
        if self._fruitless >= FRUITLESS_TRIES:
            raise Ended(decide_start_failure(error)) from error
        log.warning("container_not_created", tries=self._fruitless, error=str(error))
        # The first time it is tried again at once: most often the engine was just away.
        self._run.pause(FRUITLESS_PAUSE_SECONDS * (2 ** (self._fruitless - 1) - 1))

    def _pull(self) -> bool:
        """False when the engine went away meanwhile."""
        spec = self._run.spec
        log.info("image_pull_started", image=spec.image)
        began = time.monotonic()
        self._run.pulling = True
        try:
            with PHASES["pull"].time():
                self._runtime.pull(spec.image, limit=self._tools.pull_limit, on_open=self._run.while_pulling)
        except rt.PullInterrupted:
            # Released or stopped: the next check says which.
            return True
        except (rt.ImageNotFound, rt.InvalidReference, rt.PullFailed, rt.EngineRefused) as error:
            log.info("image_pull_failed", image=spec.image, error=str(error))
            raise Ended(decide_pull_failure(error, image=spec.image)) from error
        except rt.EngineUnavailable as error:
            self._count_fruitless(error)
            return False
        finally:
            self._pulled_seconds = (self._pulled_seconds or 0.0) + time.monotonic() - began
            self._run.pulling = False
        return True

    def _find_created(self, taken: rt.NameTaken) -> str | None:
        """What has the task's name already: ours to start, another's to adopt, or a leftover to clear away."""
        try:
            state = self._asking.ask(lambda: self._runtime.find(str(self._run.spec.task_id)))
        except NoAnswer as error:
            raise LetGo(f"the engine doesn't tell what has the task's name: {error}") from error
        if state is None:
            # Another create of it is still under way, whose answer we didn't wait for, or a removal.
            self._wait_for_name(lambda: Ended(decide_start_failure(taken)))
            return None
        if state.labels.get(rt.LABEL_INSTANCE) != self._tools.settings.instance:
            raise Ended(decide_name_taken(state.container_id)) from taken
        if state.labels.get(rt.LABEL_RUN) == str(self._run.spec.run_id):
            if self._is_own_creation(state):
                return state.container_id
            raise _Adopt(state)
        if not (state.exited or state.never_started):
            # A moment for the reaper. To be lost instead would cost a run, and a task has only so many of them.
            self._wait_for_name(lambda: LetGo("another run of the task is still running"))
            return None
        # Whoever slept through its lease meets the container of the run that came after: it isn't ours to clear.
        self._check_may_begin()
        try:
            self._asking.ask(lambda: self._runtime.remove(state.container_id))
        except rt.ContainerRuns as error:
            raise LetGo("another run of the task has just started") from error
        except NoAnswer as error:
            raise Ended(decide_start_failure(error.error)) from error
        except rt.EngineRefused as error:
            raise Ended(decide_start_failure(error)) from error
        return None

    def _wait_for_name(self, too_long: Callable[[], Exception]) -> None:
        """Until another try may find the name free; raises what `too_long` gives when that takes too long."""
        if self._name_taken_since is None:
            self._name_taken_since = time.monotonic()
            log.warning("leftover_in_the_way")
        if time.monotonic() - self._name_taken_since > LEFTOVER_SECONDS:
            raise too_long()
        self._run.pause(LEFTOVER_PAUSE_SECONDS)

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
        except Ended as ended:
            raise Ended(ended.outcome, container_id) from ended
        self._following.attach(container_id)
        self._meter(container_id)
        failpoints.reach("container_not_started")
        try:
            with PHASES["start"].time():
                self._runtime.start(container_id)
        except rt.ContainerGone as error:
            raise Ended(lost("its container was removed before it was started")) from error
        except (rt.CommandRefused, rt.EngineRefused) as error:
            raise self._decide_refused_start(container_id, error) from error
        except rt.EngineUnavailable as error:
            # Never start twice: see what came of it, as an adopter does.
            self._asking.wait(error)
            raise _Adopt(self._following.get_state(container_id)) from error

    def _decide_refused_start(self, container_id: str, error: rt.RuntimeFailure) -> Ended | _Adopt:
        """An engine that says no may have started it, or be about to: only what is removed surely never runs."""
        try:
            self._remove_unstarted(container_id)
        except rt.ContainerRuns:
            return _Adopt(self._following.get_state(container_id))
        except (NoAnswer, rt.EngineRefused):
            return Ended(decide_start_failure(error), container_id)
        return Ended(decide_start_failure(error))

    def _remove_unstarted(self, container_id: str) -> None:
        """Without force, which is the proof. Raises ContainerRuns also when it has run and ended already."""
        with suppress(NoAnswer):
            state = self._asking.ask(lambda: self._runtime.find(container_id))
            if state is not None and not state.never_started:
                raise rt.ContainerRuns(container_id)
        self._asking.ask(lambda: self._runtime.remove(container_id))

    def _check_may_begin(self) -> None:
        """Whether a container may be created or started now. Ended when the run was stopped, else LetGo."""
        if self._run.released:
            raise LetGo("released")
        if self._run.stop_asked is not None:
            raise Ended(STOPPED_BEFORE_START)
        if not self._run.lease_is_fresh:
            raise LetGo("the lease may have run out")

    # Taking over.

    def _take_over(self) -> rt.ContainerState | str:
        if (spooled := self._tools.spool.find(str(self._run.spec.run_id))) is not None:
            raise _Known(spooled)
        state = self._following.find_state(str(self._run.spec.task_id))
        if state is None or state.labels.get(rt.LABEL_RUN) != str(self._run.spec.run_id):
            raise Ended(lost("no container of it was found"))
        return self._take_over_container(state)

    def _take_over_container(self, state: rt.ContainerState) -> rt.ContainerState | str:
        """Follow what runs, collect what exited, remove what was never started."""
        log.info("run_adopted", container_status=state.status, container_id=state.container_id[:12])
        if state.never_started:
            try:
                self._asking.ask(lambda: self._runtime.remove(state.container_id))
            except rt.ContainerRuns:
                # Its creator was just starting it.
                state = self._following.get_state(state.container_id)
            except (NoAnswer, rt.EngineRefused) as error:
                raise Ended(lost(str(error)), state.container_id) from error
            else:
                raise Ended(lost("its container was never started"))
        if state.exited:
            self._following.check_exit_under_engine(state)
        else:
            self._following.note_running()
            self._meter(state.container_id)
            self._watch(state.container_id, state.started_at or self._tools.engine.now())
        return state.container_id

    # Following.

    def _watch(self, container_id: str, started_at: datetime) -> None:
        due = time.monotonic() + STARTED_REPORT_DELAY_SECONDS
        report = StartedReport(container_id, started_at, due, self._pulled_seconds)
        self._tools.reporter.report_started(self._run, report)
        ran_for = self._tools.engine.now() - started_at
        self._tools.stops.watch(self._run, container_id=container_id, ran_for=ran_for)

    def _follow(self, container_id: str) -> rt.ContainerState:
        with PHASES["run"].time():
            return self._following.follow(container_id)

    # Closing.

    def _report(self, outcome: Outcome, state: rt.ContainerState | None, container_id: str | None) -> None:
        self._tools.stops.unwatch(self._run)
        if self._run.released:
            raise LetGo("released")
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
            raise LetGo("released")
        log.info("report_restored", outcome=spooled.report.outcome.status, reason=spooled.report.outcome.reason)
        self._run.output.restore(spooled.unsent)
        self._on_ended()
        self._tools.reporter.report_finished(self._run, spooled.report)

    def _find_digest(self, state: rt.ContainerState) -> str:
        try:
            return self._runtime.find_image(state.image_id) or state.image_id
        except rt.RuntimeFailure as error:
            # The result is known, and worth more.
            log.warning("image_unknown", error=str(error))
            return state.image_id

    def _wait_settled(self) -> None:
        with PHASES["report"].time():
            self._run.wait_closed()
        if not self._run.settled:
            raise LetGo("released")

    def _remove(self, container_id: str) -> None:
        try:
            with PHASES["remove"].time():
                self._runtime.remove(container_id)
        except rt.RuntimeFailure as error:
            # The run is closed, and its slot is wanted; the reaper comes by later.
            log.warning("container_not_removed", error=str(error))

    # What it uses.

    def _meter(self, container_id: str) -> None:
        self._metered = container_id
        self._tools.meter.watch(container_id)

    def _take_usage(self) -> Usage:
        metered, self._metered = self._metered, None
        return UNKNOWN if metered is None else self._tools.meter.take(metered)


def _get_end(state: rt.ContainerState) -> datetime | None:
    """The engine notes both times apart; of a container that lives a few milliseconds, the end may be first."""
    if state.finished_at is None or state.started_at is None:
        return state.finished_at
    return max(state.started_at, state.finished_at)
