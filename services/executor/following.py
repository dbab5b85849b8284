"""Follows a container to its end: takes its output, and decides whether its exit is the command's own.

An engine that stops or dies takes its containers with it, and notes exits for them that look like any other. What
tells them apart is written down in docs/adr/0011-exits-across-an-engine-restart.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta

import structlog

from services.executor import runtime as rt
from services.executor.asking import Asking, LetGo, NoAnswer
from services.executor.held_run import HeldRun
from services.executor.outcome import Outcome
from services.executor.tools import Tools

log = structlog.get_logger()

# A daemon that is told to stop gives containers up to 15 s; an exit in that time may be its doing.
ENGINE_STOP_SECONDS = 20.0

# After a crash a daemon that comes back ends what it finds running; that takes it a moment.
ENGINE_RECOVERY_SECONDS = 30.0

# The engine's copy of the output of a container that has ended.
COPY_TRIES = 5
COPY_PAUSE_SECONDS = 1.0


class Ended(Exception):
    """The run's outcome is known, without an exit of its container."""

    def __init__(self, outcome: Outcome, container_id: str | None = None) -> None:
        super().__init__(outcome.reason)
        self.outcome = outcome
        self.container_id = container_id


def lost(why: str) -> Outcome:
    return Outcome("lost", error_msg=f"The run was lost: {why}.")


class Following:
    """One run's container. Every method may raise LetGo, and Ended when the run's outcome is known without an exit
    that can be believed."""

    def __init__(self, run: HeldRun, tools: Tools, asking: Asking) -> None:
        self._run = run
        self._runtime = tools.runtime
        self._engine = tools.engine
        self._asking = asking
        self._seen_running_at: datetime | None = None
        self._attached: Iterator[tuple[rt.Stream, bytes]] | None = None

    def attach(self, container_id: str) -> None:
        """Have the output come here from its first byte. Without it the engine's copy is followed instead."""
        with suppress(rt.EngineUnavailable, rt.EngineRefused, rt.ContainerGone):
            self._attached = self._runtime.attach(container_id, on_open=self._run.while_following)

    def follow(self, container_id: str) -> rt.ContainerState:
        """Take all output until the container has exited; its last state."""
        pauses = _pauses()
        while True:
            complete = self._read_output(container_id)
            state = self.get_state(container_id)
            if state.exited:
                self.check_exit_under_engine(state)
                # A stream that the engine took down with it ends like one that is complete.
                if not complete or self._asking.gap_began is not None:
                    self._complete_output(container_id)
                self._check_exit_across_gap(state)
                return state
            self.note_running()
            self._run.wait_closed(next(pauses))

    def note_running(self) -> None:
        """Whatever went wrong with the engine before did not end it."""
        self._asking.gap_began = None
        self._seen_running_at = self._engine.now()

    def _read_output(self, container_id: str) -> bool:
        """Take what the container writes. True when all of it has come."""
        attached, self._attached = self._attached, None
        if attached is not None:
            return self._take_output(attached)
        with suppress(rt.ContainerGone):
            self._read_copy(container_id)
        # The copy may lack what was written just before the end.
        return False

    def _complete_output(self, container_id: str) -> None:
        """What of the output of a container that has ended hasn't come yet; a mark where it isn't to be had."""
        with suppress(rt.ContainerGone):
            for _ in range(COPY_TRIES):
                if self._read_copy(container_id):
                    return
                self._run.wait_closed(COPY_PAUSE_SECONDS)
        log.warning("output_incomplete")
        self._run.output.mark_missing()

    def _read_copy(self, container_id: str) -> bool:
        """Take what the engine kept, skipping what has been seen. True when all of it has come."""
        self._run.output.begin_follow()
        return self._take_output(self._follow_copy(container_id))

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
            self._asking.wait(error)
        except (rt.StreamBroken, rt.EngineRefused) as error:
            log.warning("output_broken_off", error=str(error))
        if self._run.released:
            raise LetGo("released")
        return ended

    def _check_exit_across_gap(self, state: rt.ContainerState) -> None:
        """A daemon that goes down takes its containers with it; that exit is not the command's own."""
        if self._asking.gap_began is None or state.finished_at is None or state.oom_killed:
            return
        if state.finished_at > self._asking.gap_began - timedelta(seconds=ENGINE_STOP_SECONDS):
            raise Ended(lost("the container engine stopped while it ran"), state.container_id)

    def check_exit_under_engine(self, state: rt.ContainerState) -> None:
        """The end of what an earlier daemon had at work may be that daemon's doing, and be noted by this one.

        A daemon that is stopping ends its containers first, and tells so to who is connected; but it doesn't
        listen any more, so this waits then until it is back.
        """
        engine_began = self._asking.ask(self._runtime.find_began)
        at_work_at = self._seen_running_at or state.started_at
        if engine_began is None or at_work_at is None or state.finished_at is None or state.oom_killed:
            return
        recovered_at = engine_began + timedelta(seconds=ENGINE_RECOVERY_SECONDS)
        if at_work_at < engine_began and state.finished_at < recovered_at:
            raise Ended(lost("the container engine stopped while it ran"), state.container_id)

    def get_state(self, container_id: str) -> rt.ContainerState:
        state = self.find_state(container_id)
        if state is None:
            raise Ended(lost("its container was removed by someone else"))
        return state

    def find_state(self, name_or_id: str) -> rt.ContainerState | None:
        """What the engine says of the container, however often it has to be asked."""
        while True:
            try:
                return self._asking.ask(lambda: self._runtime.find(name_or_id))
            except NoAnswer as error:
                self._prove_absence(name_or_id, error)

    def _prove_absence(self, name_or_id: str, silence: NoAnswer) -> None:
        """All that can be known of a container that the engine tells nothing about: does it let itself be removed?

        Returns when it doesn't: most likely it runs, so nothing else of its task may.
        """
        try:
            self._runtime.remove(name_or_id)
        except rt.RuntimeFailure as error:
            log.warning("container_unknown", error=str(silence), removal=str(error))
            return
        raise Ended(lost(f"the container engine could not tell how it ended: {silence}")) from silence


def _pauses() -> Iterator[float]:
    """A follow that ends before its container is rare; look again soon, then less often."""
    seconds = 0.02
    while True:
        yield seconds
        seconds = min(1.0, seconds * 2)
