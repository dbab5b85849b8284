"""What an execution works with: the engine, who takes its reports, who stops it, who watches the engine."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from services.executor import runtime as rt
from services.executor.container_options import ContainerSettings
from services.executor.held_run import FinishedReport, HeldRun, StartedReport
from services.executor.meter import Meter
from services.executor.spool import Spool


class Reporter(Protocol):
    """The part of the sync that a run uses."""

    def report_started(self, run: HeldRun, report: StartedReport) -> None: ...

    def report_finished(self, run: HeldRun, report: FinishedReport) -> None: ...

    def let_go(self, run: HeldRun) -> None: ...


class Stops(Protocol):
    """Who sends signals to containers whose time is up, or whose stop was asked."""

    def watch(self, run: HeldRun, *, container_id: str, ran_for: timedelta) -> None: ...

    def unwatch(self, run: HeldRun) -> None: ...


class EngineWatch(Protocol):
    """What is known of the engine, shared by all threads."""

    def now(self) -> datetime: ...

    def lost(self, error: rt.EngineUnavailable) -> None: ...

    def wait_up(self, seconds: float) -> bool: ...


@dataclass(frozen=True, slots=True)
class Tools:
    """What every run of one thread uses. `runtime` belongs to that thread alone."""

    runtime: rt.Runtime
    reporter: Reporter
    stops: Stops
    engine: EngineWatch
    spool: Spool
    meter: Meter
    settings: ContainerSettings
    pull_limit: timedelta
