"""Asks the engine again what is harmless to ask again, for one run: while it is away, and when it fails at it.

An engine that is away is waited for, however long. One that is there and doesn't tell is asked for a while only,
with growing pauses: what its silence means is then for the caller to decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TypeVar

import structlog

from services.executor import runtime as rt
from services.executor.held_run import HeldRun
from services.executor.tools import EngineWatch

log = structlog.get_logger()

T = TypeVar("T")

# Three quarters of a minute, if each try fails at once.
TRIES = 15
FIRST_PAUSE_SECONDS = 0.2
LAST_PAUSE_SECONDS = 5.0


class LetGo(Exception):
    """The run isn't, or isn't surely, this executor's: report nothing, touch nothing."""


class NoAnswer(Exception):
    """The engine is there, and doesn't do what it was asked."""

    def __init__(self, error: rt.EngineUnavailable | rt.EngineFault) -> None:
        super().__init__(str(error))
        self.error = error


class Asking:
    """`gap_began` is when the engine, by its clock, was first seen away, until that doesn't matter any more."""

    def __init__(self, run: HeldRun, engine: EngineWatch) -> None:
        self._run = run
        self._engine = engine
        self.gap_began: datetime | None = None

    def ask(self, call: Callable[[], T]) -> T:
        """The answer, once there is one. Raises NoAnswer, LetGo, and what else `call` does."""
        pauses = _pauses()
        for tries in range(1, TRIES + 1):
            try:
                return call()
            except rt.EngineUnavailable as error:
                self.wait(error)
                failure: rt.EngineUnavailable | rt.EngineFault = error
            except rt.EngineFault as error:
                log.warning("engine_faulty", tries=tries, error=str(error))
                failure = error
            self._run.wait_closed(next(pauses))
            if self._run.released:
                raise LetGo("released") from failure
        raise NoAnswer(failure) from failure

    def wait(self, error: rt.EngineUnavailable) -> None:
        """A call wasn't answered: wait until the engine is seen up. LetGo when the run is released meanwhile."""
        if self._run.released:
            raise LetGo("released") from error
        if self.gap_began is None:
            self.gap_began = self._engine.now()
        log.warning("engine_unavailable", error=str(error))
        self._engine.lost(error)
        while not self._engine.wait_up(1.0):
            if self._run.released:
                raise LetGo("released") from error


def _pauses() -> Iterator[float]:
    # Most often the engine was just away, and answers now.
    yield 0.0
    seconds = FIRST_PAUSE_SECONDS
    while True:
        yield seconds
        seconds = min(LAST_PAUSE_SECONDS, seconds * 2)
