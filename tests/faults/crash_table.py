"""The crash table of docs/task-model.md as data: what is hit where, what has to come of it, and how soon."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from tests.faults.world import COUNTING, QUICK, STUBBORN, Row, World

KILL, RESTART, FREEZE, CUT = "kill", "restart", "freeze", "cut"

LEASE = timedelta(seconds=30)
TERMINAL = ("completed", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class View:
    """A task and its runs at one moment, and whether a container of it is there."""

    task: Row
    runs: Sequence[Row]
    has_container: bool
    is_answered: bool
    # By the database's clock: from when the seconds count.
    since: datetime

    @property
    def has_ended(self) -> bool:
        return self.task["status"] in TERMINAL


Recovered = Callable[[View], bool]


def is_answered(view: View) -> bool:
    return view.is_answered


def is_published(view: View) -> bool:
    return any(run["published_at"] is not None or run["status"] != "queued" for run in view.runs)


def is_claimed(view: View) -> bool:
    return any(run["status"] != "queued" for run in view.runs)


def is_asked_for_again(view: View) -> bool:
    """The executor has said that it wants the run, and was told that it has it."""
    renewed = any(run["expires_at"] is not None and run["expires_at"] >= view.since + LEASE for run in view.runs)
    return renewed or view.has_ended


def is_held_again(view: View) -> bool:
    """By somebody who is there: another executor, or another start of the one that was hit."""
    return view.has_ended or any(run["epoch"] > 1 and run["is_held"] for run in view.runs)


def has_ended(view: View) -> bool:
    return view.has_ended


def is_cleared_away(view: View) -> bool:
    return view.has_ended and not view.has_container


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """One row. `within` is in seconds, by what is done to the part that is at the failpoint.

    `alone` means that nobody else can do what the part was about to do, so a freeze or a cut has to end first: the
    seconds count from there, and after a kill from when the part is ready again. Otherwise they count from the
    fault itself.
    `lost`: the faults after which a first run is known never to have started, and another one is made.
    """

    row: str
    failpoint: str
    # The failpoint's, unless two rows share it.
    name: str = ""
    within: Mapping[str, float]
    recovered: Recovered
    script: str = QUICK
    fields: Mapping[str, Any] = field(default_factory=dict)
    alone: bool = False
    lost: Sequence[str] = ()
    status: str = "completed"
    reason: str | None = None
    # At the failpoint, before the fault.
    also: Callable[[World], None] | None = None
    cancels: bool = False


def _all(seconds: float) -> Mapping[str, float]:
    return {KILL: seconds, RESTART: seconds, FREEZE: seconds, CUT: seconds}


def _only_one(seconds: float) -> Mapping[str, float]:
    """For a part that nobody replaces: a kill is always followed by a restart."""
    return {RESTART: seconds, FREEZE: seconds, CUT: seconds}


TABLE: Mapping[str, Crash] = {
    crash.name or crash.failpoint: crash
    for crash in (
        Crash(
            row="before the commit of a new task",
            failpoint="task_not_committed",
            within=_only_one(5.0),
            recovered=is_answered,
            alone=True,
        ),
        Crash(
            row="before its answer",
            failpoint="task_committed",
            within=_only_one(5.0),
            recovered=is_answered,
            alone=True,
        ),
        Crash(
            row="run made, not committed",
            failpoint="run_not_committed",
            within=_all(16.0),
            recovered=is_published,
        ),
        Crash(
            row="run made, not published",
            failpoint="run_not_published",
            within=_all(16.0),
            recovered=is_published,
        ),
        Crash(
            row="published, not marked so",
            failpoint="run_published",
            within=_all(16.0),
            recovered=is_claimed,
        ),
        Crash(
            row="delivered, not claimed",
            failpoint="run_delivered",
            within=_all(20.0),
            recovered=is_claimed,
        ),
        Crash(
            row="message lost, broker wiped",
            failpoint="run_delivered",
            name="message_lost",
            also=World.wipe_broker,
            within=_all(31.0),
            recovered=is_claimed,
        ),
        Crash(
            row="claim not committed",
            failpoint="claim_not_committed",
            within=_only_one(5.0),
            recovered=is_asked_for_again,
            alone=True,
        ),
        Crash(
            row="claim granted, its answer lost",
            failpoint="claim_committed",
            within=_only_one(5.0),
            recovered=is_asked_for_again,
            alone=True,
        ),
        Crash(
            row="claimed, not created",
            failpoint="container_not_created",
            within=_all(40.0),
            recovered=has_ended,
            lost=(KILL, RESTART, FREEZE),
        ),
        Crash(
            row="created, not started",
            failpoint="container_not_started",
            within=_all(40.0),
            recovered=has_ended,
            lost=(KILL, RESTART, FREEZE),
        ),
        Crash(
            row="started, not reported",
            failpoint="container_started",
            within=_all(40.0) | {RESTART: 5.0},
            recovered=is_held_again,
            script=COUNTING,
        ),
        Crash(
            row="running",
            failpoint="start_reported",
            within=_all(40.0) | {RESTART: 5.0},
            recovered=is_held_again,
            script=COUNTING,
        ),
        Crash(
            row="exited, not reported",
            failpoint="container_exited",
            within=_all(40.0),
            recovered=has_ended,
        ),
        Crash(
            row="reported, answer lost",
            failpoint="report_committed",
            within=_only_one(5.0),
            recovered=is_cleared_away,
            alone=True,
        ),
        Crash(
            row="reported, not removed",
            failpoint="container_not_removed",
            within=_all(60.0),
            recovered=is_cleared_away,
        ),
        Crash(
            row="time limit reached, executor dead",
            failpoint="signal_not_sent",
            name="time_limit_reached",
            within=_all(50.0),
            recovered=has_ended,
            script=STUBBORN,
            fields={"timeoutSeconds": 1},
            status="failed",
            reason="timeout",
        ),
        Crash(
            row="stop requested, executor dead",
            failpoint="signal_not_sent",
            name="stop_not_sent",
            cancels=True,
            within=_all(45.0),
            recovered=has_ended,
            script=COUNTING,
            status="cancelled",
        ),
    )
}
