"""One run through its steps, and through every way in which a step can go wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from services.executor import execution
from services.executor import runtime as rt
from services.executor.execution import Execution
from services.executor.held_run import FinishedReport, HeldRun, StartedReport, lease_clock
from services.executor.meter import Meter
from services.executor.output import Output
from services.executor.spec import StoredOutput
from services.executor.spool import Spool
from services.executor.tests.builders import BOOT_ID, make_run, make_settings, make_spec
from services.executor.tests.fake_runtime import FakeContainer, FakeEngine, FakeRuntime, Program
from services.executor.tools import Tools
from tests.polling import wait_until


class FakeReporter:
    """Settles every report at once, unless told to wait."""

    def __init__(self) -> None:
        self.started: list[StartedReport] = []
        self.finished: list[FinishedReport] = []
        self.gone: list[HeldRun] = []
        self.settles = True
        self.told = threading.Event()

    def report_started(self, run: HeldRun, report: StartedReport) -> None:
        self.started.append(report)

    def report_finished(self, run: HeldRun, report: FinishedReport) -> None:
        self.finished.append(report)
        self.told.set()
        if self.settles:
            run.settle()

    def let_go(self, run: HeldRun) -> None:
        self.gone.append(run)


class FakeStops:
    def __init__(self) -> None:
        self.watched: list[str] = []
        self.ran_for: timedelta | None = None

    def watch(self, run: HeldRun, *, container_id: str, ran_for: timedelta) -> None:
        self.watched.append(container_id)
        self.ran_for = ran_for

    def unwatch(self, run: HeldRun) -> None:
        """Nothing to stop."""


class FakeWatch:
    """Comes up again when `back` is set."""

    def __init__(self, engine: FakeEngine) -> None:
        self.losses = 0
        self._engine = engine

    def now(self) -> datetime:
        return self._engine.now()

    def lost(self, error: rt.EngineUnavailable) -> None:
        self.losses += 1

    def wait_up(self, seconds: float) -> bool:
        with self._engine.changed:
            return self._engine.changed.wait_for(lambda: not self._engine.down, seconds)


class Bench:
    """An engine, a runtime, and everything that an execution needs."""

    def __init__(self, directory: Path | None = None) -> None:
        self.engine = FakeEngine()
        self.reporter = FakeReporter()
        self.stops = FakeStops()
        self.watch = FakeWatch(self.engine)
        self.tools = Tools(
            runtime=FakeRuntime(self.engine),
            reporter=self.reporter,
            stops=self.stops,
            engine=self.watch,
            spool=Spool(directory=directory, limit_bytes=1_000_000, keep_after_seconds=0.0),
            meter=Meter(None),
            settings=make_settings(),
            pull_limit=timedelta(seconds=5),
        )

    @property
    def report(self) -> FinishedReport:
        (report,) = self.reporter.finished
        return report

    def execute(self, run: HeldRun) -> None:
        Execution(run, self.tools).execute()

    def adopt(self, run: HeldRun) -> None:
        Execution(run, self.tools).adopt()

    def leave(self, run: HeldRun, *argv: str, **changes: Any) -> FakeContainer:
        """A container of that run that an executor before us made."""
        labels = {
            rt.LABEL_INSTANCE: self.tools.settings.instance,
            rt.LABEL_RUN: str(run.spec.run_id),
            rt.LABEL_EPOCH: str(run.epoch - 1),
            rt.LABEL_BOOT: "an-earlier-boot",
        }
        options = {"Image": "busybox", "Cmd": list(argv), "Labels": labels | changes.pop("labels", {})}
        return self.engine.add(str(run.spec.task_id), options=options, **changes)


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def in_thread() -> Iterator[Any]:
    """Run something beside the test, and see that it ends."""
    threads: list[threading.Thread] = []

    def start(target: Any, *args: Any) -> threading.Thread:
        thread = threading.Thread(target=target, args=args, daemon=True)
        threads.append(thread)
        thread.start()
        return thread

    yield start
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


def sh(script: str, **changes: Any) -> HeldRun:
    return make_run(make_spec(command="sh", args=["-c", script], **changes))


# A claimed run.


def test_a_run_is_created_started_reported_and_removed(bench: Bench):
    bench.engine.programs["sh", "-c", "hello"] = Program([("stdout", b"hi"), ("stderr", b"warning")])
    run = sh("hello")

    bench.execute(run)

    report = bench.report
    assert report.outcome.status == "completed"
    assert report.outcome.exit_code == 0
    assert report.result == b"hi"
    assert report.image_digest == "sha256:digest"
    assert report.started_at is not None
    assert report.finished_at is not None
    assert report.started_at <= report.finished_at
    assert [(chunk.stream, chunk.data) for chunk in run.output.take(1000)] == [
        ("stdout", b"hi"),
        ("stderr", b"warning"),
    ]
    assert bench.engine.containers == {}


def test_a_short_run_asks_the_engine_six_times_and_no_more(bench: Bench):
    bench.execute(make_run())

    assert bench.engine.calls == ["create", "attach", "start", "find", "find_image", "remove"]


def test_a_nonzero_exit_fails_with_its_last_words(bench: Bench):
    bench.engine.programs["sh", "-c", "fail"] = Program([("stderr", b"no such table\n")], exit_code=3)

    bench.execute(sh("fail"))

    outcome = bench.report.outcome
    assert (outcome.status, outcome.reason, outcome.exit_code) == ("failed", "exit_nonzero", 3)
    assert outcome.error_msg is not None
    assert "no such table" in outcome.error_msg


def test_the_container_stays_until_the_report_is_settled(bench: Bench, in_thread: Any):
    bench.reporter.settles = False
    run = make_run()
    in_thread(bench.execute, run)
    assert bench.reporter.told.wait(5)

    assert bench.engine.only().status == "exited"
    run.settle()
    bench.engine.wait(lambda: not bench.engine.containers)


def test_the_slot_is_free_when_the_container_has_ended(bench: Bench):
    seen: list[tuple[str, int]] = []

    def note() -> None:
        seen.append((bench.engine.only().status, len(bench.reporter.finished)))

    Execution(make_run(), bench.tools, on_ended=note).execute()

    assert seen == [("exited", 0)]


def test_a_missing_image_is_pulled_once(bench: Bench):
    bench.engine.registry["pulled:1"] = None

    bench.execute(make_run(make_spec(image="pulled:1")))

    assert bench.report.outcome.status == "completed"
    assert bench.engine.calls.count("pull") == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (rt.ImageNotFound("manifest unknown"), "image_not_found"),
        (rt.PullFailed("connection refused"), "image_pull_failed"),
        (rt.InvalidReference("invalid reference format"), "image_not_found"),
    ],
)
def test_an_image_that_cannot_be_had_fails_the_run(bench: Bench, error: rt.RuntimeFailure, reason: str):
    bench.engine.registry["missing:1"] = error

    bench.execute(make_run(make_spec(image="missing:1")))

    assert (bench.report.outcome.status, bench.report.outcome.reason) == ("failed", reason)
    assert bench.engine.history == []


def test_a_command_that_the_engine_refuses_is_invalid_and_leaves_nothing(bench: Bench):
    bench.engine.before["start"] = rt.CommandRefused("exec format error")

    bench.execute(make_run())

    assert bench.report.outcome.reason == "invalid_command"
    assert bench.engine.containers == {}


def test_a_container_that_the_engine_refuses_is_its_error(bench: Bench):
    bench.engine.before["create"] = rt.EngineRefused("no space left on device")

    bench.execute(make_run())

    assert bench.report.outcome.reason == "engine_error"
    assert "no space left" in str(bench.report.outcome.error_msg)


def always(failure: Exception) -> dict[str, Any]:
    """What fails each time that it is called."""

    class Always(dict[str, Any]):
        def pop(self, method: str, default: Any = None) -> Any:
            return self.get(method, default)

    return Always(create=failure)


@pytest.mark.parametrize("failure", [rt.EngineFault("500 server error"), rt.EngineUnavailable("502 bad gateway")])
def test_a_container_that_can_never_be_created_fails_its_run_in_the_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, failure: rt.RuntimeFailure
):
    monkeypatch.setattr(execution, "FRUITLESS_PAUSE_SECONDS", 0.0)
    bench.engine.before = always(failure)

    bench.execute(make_run())

    assert bench.engine.calls.count("create") == execution.FRUITLESS_TRIES
    assert (bench.report.outcome.status, bench.report.outcome.reason) == ("failed", "engine_error")
    assert str(failure) in str(bench.report.outcome.error_msg)


def test_a_fault_of_the_engine_that_passes_fails_nothing(bench: Bench):
    bench.engine.before["create"] = rt.EngineFault("500 server error")

    bench.execute(make_run())

    assert bench.report.outcome.status == "completed"


def test_a_pull_during_which_the_engine_goes_away_is_begun_again(bench: Bench):
    bench.engine.registry["tool"] = None
    bench.engine.before["pull"] = rt.EngineUnavailable("connection reset")

    bench.execute(make_run(make_spec(image="tool")))

    assert bench.report.outcome.status == "completed"
    assert bench.engine.calls.count("pull") == 2


def test_a_start_that_was_refused_but_happened_is_followed(bench: Bench):
    bench.engine.after["start"] = rt.EngineRefused("context deadline exceeded")

    bench.execute(make_run())

    assert bench.report.outcome.status == "completed"
    assert bench.engine.history[0].starts == 1


# Stops and leases.


def test_a_run_stopped_before_its_start_is_never_created(bench: Bench):
    run = make_run()
    run.ask_stop("cancelled")

    bench.execute(run)

    assert bench.report.outcome.status == "cancelled"
    assert bench.engine.history == []


def test_a_run_stopped_between_create_and_start_is_never_started(bench: Bench):
    run = make_run()
    bench.engine.after["create"] = lambda: run.ask_stop("cancelled")

    bench.execute(run)

    assert bench.report.outcome.status == "cancelled"
    assert bench.engine.history[0].starts == 0
    assert bench.engine.containers == {}


def test_a_stop_breaks_off_a_pull(bench: Bench):
    run = make_run(make_spec(image="slow:1"))
    bench.engine.before["pull"] = lambda: run.ask_stop("cancelled")

    bench.execute(run)

    assert bench.report.outcome.status == "cancelled"


def test_nothing_is_created_on_a_lease_that_may_have_run_out(bench: Bench):
    run = make_run(renewed_at=lease_clock() - 26)

    bench.execute(run)

    assert bench.engine.history == []
    assert bench.reporter.finished == []
    assert bench.reporter.gone == [run]


def test_nothing_is_started_on_a_lease_that_ran_out_during_the_create(bench: Bench):
    clock = [100.0]
    run = make_run(renewed_at=100.0, clock=lambda: clock[0])
    bench.engine.after["create"] = lambda: clock.__setitem__(0, 126.0)

    bench.execute(run)

    assert bench.engine.only().starts == 0
    assert bench.reporter.gone == [run]


def test_a_released_run_is_left_alone(bench: Bench, in_thread: Any):
    run = make_run(make_spec(command="sleep", args=["60"]))
    thread = in_thread(bench.execute, run)
    wait_until(lambda: bool(bench.stops.watched))

    run.release()
    thread.join(5)

    assert bench.engine.only().status == "running"
    assert bench.engine.only().signals == []
    assert bench.reporter.finished == []


def test_a_run_released_while_its_report_is_under_way_keeps_its_container(bench: Bench, in_thread: Any):
    bench.reporter.settles = False
    run = make_run()
    thread = in_thread(bench.execute, run)
    assert bench.reporter.told.wait(5)

    run.release()
    thread.join(5)

    assert bench.engine.only().status == "exited"


# A name that is taken.


def test_a_create_whose_answer_was_lost_is_found_and_started_once(bench: Bench):
    bench.engine.after["create"] = rt.EngineUnavailable("timed out")

    bench.execute(make_run())

    assert bench.report.outcome.status == "completed"
    assert [each.starts for each in bench.engine.history] == [1]


def test_a_start_whose_answer_was_lost_is_not_done_again(bench: Bench):
    bench.engine.after["start"] = rt.EngineUnavailable("timed out")

    bench.execute(make_run())

    # An engine that fell silent may have ended it: that is for the next attempt to make good.
    assert bench.report.outcome.status == "lost"
    assert [each.starts for each in bench.engine.history] == [1]


def test_a_start_that_did_not_happen_is_not_done_again_either(bench: Bench):
    bench.engine.before["start"] = rt.EngineUnavailable("connection refused")

    bench.execute(make_run())

    assert bench.report.outcome.status == "lost"
    assert bench.engine.history[0].starts == 0
    assert bench.engine.containers == {}


def test_the_leftover_of_an_earlier_run_makes_room(bench: Bench):
    run = make_run()
    leftover = bench.leave(run, labels={rt.LABEL_RUN: "an-earlier-run"}, status="exited")

    bench.execute(run)

    assert bench.report.outcome.status == "completed"
    assert leftover.starts == 0
    assert bench.engine.containers == {}


def test_who_slept_until_the_next_run_has_ended_leaves_that_its_container(bench: Bench):
    clock = [100.0]
    run = make_run(renewed_at=100.0, clock=lambda: clock[0])
    later = bench.leave(run, labels={rt.LABEL_RUN: "a-later-run"}, status="exited")
    bench.engine.before["create"] = lambda: clock.__setitem__(0, 145.0)

    bench.execute(run)

    assert later.container_id in bench.engine.containers
    assert bench.reporter.gone == [run]
    assert not bench.reporter.finished


def test_a_leftover_that_still_runs_is_waited_for(bench: Bench, in_thread: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(execution, "LEFTOVER_PAUSE_SECONDS", 0.01)
    run = make_run()
    leftover = bench.leave(run, labels={rt.LABEL_RUN: "an-earlier-run"}, status="running")
    in_thread(lambda: bench.execute(run))

    wait_until(lambda: bench.engine.calls.count("create") > 2)
    assert leftover.signals == [], "it is the reaper's to stop"
    bench.engine.finish(leftover, 143)

    wait_until(lambda: bench.reporter.finished != [])
    assert bench.report.outcome.status == "completed"


def test_a_running_container_of_another_run_is_left_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(execution, "LEFTOVER_SECONDS", 0.02)
    monkeypatch.setattr(execution, "LEFTOVER_PAUSE_SECONDS", 0.01)
    run = make_run()
    other = bench.leave(run, labels={rt.LABEL_RUN: "an-earlier-run"}, status="running")

    bench.execute(run)

    assert bench.reporter.finished == []
    assert bench.reporter.gone == [run]
    assert bench.engine.only() is other


def test_a_container_of_this_run_that_another_process_started_is_followed(bench: Bench):
    run = make_run()
    container = bench.leave(run, "true", status="exited", output=[("stdout", b"there")], exit_code=0)

    bench.execute(run)

    assert bench.report.result == b"there"
    assert container.starts == 0


# Taking over.


def test_an_adopted_run_without_a_container_is_lost(bench: Bench):
    bench.adopt(make_run(epoch=2))

    assert bench.report.outcome.status == "lost"


def test_an_adopted_container_that_was_never_started_is_removed_unstarted(bench: Bench):
    run = make_run(epoch=2)
    container = bench.leave(run, "true")

    bench.adopt(run)

    assert bench.report.outcome.status == "lost"
    assert container.starts == 0
    assert bench.engine.containers == {}


def test_a_container_that_its_creator_is_just_starting_is_followed(bench: Bench, in_thread: Any):
    run = make_run(epoch=2)
    container = bench.leave(run, "sleep", "60")
    bench.engine.before["remove"] = lambda: bench.engine.begin(container)
    in_thread(bench.adopt, run)
    wait_until(lambda: bool(bench.stops.watched))

    bench.engine.finish(container, 0)

    bench.engine.wait(lambda: not bench.engine.containers)
    assert bench.report.outcome.status == "completed"


def test_an_adopted_container_that_exited_is_collected(bench: Bench):
    run = make_run(epoch=2)
    now = datetime.now(UTC)
    times = {"started_at": now, "finished_at": now}
    bench.leave(run, status="exited", exit_code=5, output=[("stdout", b"all"), ("stderr", b"bad")], **times)

    bench.adopt(run)

    assert bench.report.outcome.exit_code == 5
    assert bench.report.result == b"all"
    assert bench.engine.containers == {}


def test_an_adopter_sends_only_what_its_predecessor_had_not(bench: Bench, in_thread: Any):
    stored = StoredOutput(next_seq=7, stdout_bytes=4, stderr_bytes=0)
    run = make_run(epoch=2, output=Output(on_pending=lambda: None, stored=stored))
    container = bench.leave(run, "sleep", "60", status="running", output=[("stdout", b"one\ntwo\n")])
    in_thread(bench.adopt, run)
    wait_until(lambda: bool(bench.stops.watched))

    bench.engine.write(container, "stdout", b"three\n")
    bench.engine.finish(container, 0)
    assert bench.reporter.told.wait(5)

    chunks = run.output.take(1000)
    assert [chunk.seq for chunk in chunks] == list(range(7, 7 + len(chunks)))
    assert b"".join(chunk.data for chunk in chunks) == b"two\nthree\n"
    assert bench.report.result == b"one\ntwo\nthree\n"


def test_an_exit_from_before_the_engine_began_is_no_proof(bench: Bench):
    run = make_run(epoch=2)
    earlier = datetime.now(UTC) - timedelta(minutes=5)
    bench.leave(run, status="exited", exit_code=0, started_at=earlier, finished_at=earlier)
    bench.engine.began = datetime.now(UTC)

    bench.adopt(run)

    assert bench.report.outcome.status == "lost"


def test_an_exit_from_well_after_the_engine_began_is_believed(bench: Bench):
    run = make_run(epoch=2)
    now = datetime.now(UTC)
    bench.leave(run, status="exited", exit_code=0, started_at=now - timedelta(minutes=9), finished_at=now)
    bench.engine.began = datetime.now(UTC) - timedelta(minutes=5)

    bench.adopt(run)

    assert bench.report.outcome.status == "completed"


# The engine goes away.


def test_a_broken_stream_goes_on_where_it_was(bench: Bench, in_thread: Any):
    run = make_run(make_spec(command="sleep", args=["60"]))
    in_thread(bench.execute, run)
    wait_until(lambda: bool(bench.stops.watched))
    container = bench.engine.only()
    bench.engine.write(container, "stdout", b"before ")
    wait_until(lambda: run.output.result == b"before ")

    bench.engine.break_streams()
    bench.engine.write(container, "stdout", b"after")
    wait_until(lambda: run.output.result == b"before after")
    bench.engine.finish(container, 0)

    assert bench.reporter.told.wait(5)
    assert bench.report.outcome.status == "completed"
    assert bench.report.result == b"before after"


@pytest.mark.parametrize("ahead", [timedelta(0), timedelta(hours=1), timedelta(hours=-1)])
def test_an_exit_that_came_with_the_engines_end_is_no_proof_whosever_clock_is_off(
    bench: Bench, in_thread: Any, ahead: timedelta
):
    bench.engine.ahead = ahead
    run = make_run(make_spec(command="sleep", args=["60"]))
    in_thread(bench.execute, run)
    wait_until(lambda: bool(bench.stops.watched))

    with bench.engine.changed:
        bench.engine.down = True
        bench.engine.finish(bench.engine.only(), 0)
    bench.engine.break_streams()
    wait_until(lambda: bench.watch.losses > 0)
    with bench.engine.changed:
        bench.engine.down = False
        bench.engine.changed.notify_all()

    assert bench.reporter.told.wait(5)
    assert bench.report.outcome.status == "lost"


@pytest.mark.parametrize("ahead", [timedelta(hours=1), timedelta(hours=-1)])
def test_whose_clock_is_off_makes_no_difference_to_an_adopted_runs_time_limit(
    bench: Bench, in_thread: Any, ahead: timedelta
):
    bench.engine.ahead = ahead
    run = make_run(epoch=2)
    container = bench.leave(run, "sleep", "60")
    bench.engine.begin(container)

    in_thread(bench.adopt, run)
    wait_until(lambda: bool(bench.stops.watched))

    assert bench.stops.ran_for is not None
    assert timedelta(0) <= bench.stops.ran_for < timedelta(minutes=1)
    bench.engine.finish(container, 0)
    assert bench.reporter.told.wait(5)


def test_an_engine_that_is_away_is_waited_for(bench: Bench, in_thread: Any):
    bench.engine.down = True
    in_thread(bench.execute, make_run())
    wait_until(lambda: bench.watch.losses > 0)

    with bench.engine.changed:
        bench.engine.down = False
        bench.engine.changed.notify_all()

    assert bench.reporter.told.wait(5)
    assert bench.report.outcome.status == "completed"


def test_a_container_that_someone_removed_is_lost(bench: Bench, in_thread: Any):
    run = make_run(make_spec(command="sleep", args=["60"]))
    in_thread(bench.execute, run)
    wait_until(lambda: bool(bench.stops.watched))

    with bench.engine.changed:
        container = bench.engine.only()
        bench.engine.containers.clear()
        bench.engine.finish(container, 137)

    assert bench.reporter.told.wait(5)
    assert bench.report.outcome.status == "lost"


def test_an_own_creation_is_told_by_its_boot_and_epoch(bench: Bench):
    run = make_run(epoch=3)
    labels = {rt.LABEL_BOOT: BOOT_ID, rt.LABEL_EPOCH: "2"}
    container = bench.leave(run, "true", labels=labels)

    bench.execute(run)

    assert container.starts == 0
    assert bench.report.outcome.status == "lost"


# The spool.


def settled_later(bench: Bench, run: HeldRun) -> threading.Thread:
    """The scheduler is away: the run waits with its report."""
    bench.reporter.settles = False
    thread = threading.Thread(target=bench.execute, args=(run,))
    thread.start()
    assert bench.reporter.told.wait(5)
    run.finished = bench.report
    return thread


def test_what_was_known_of_an_end_is_reported_though_its_container_is_gone(tmp_path: Path):
    before, after = Bench(tmp_path), Bench(tmp_path)
    spec = make_spec(command="sh", args=["-c", "exit 3"])
    first = make_run(spec)
    thread = settled_later(before, first)
    before.tools.spool.keep(first)
    first.release()
    thread.join(5)

    second = make_run(spec, epoch=2, output=Output(on_pending=lambda: None, stored=StoredOutput(0, 0, 0)))
    after.adopt(second)

    assert after.report == before.report
    assert after.report.outcome.exit_code == 3
    assert after.engine.calls == ["remove"], "nothing had to be asked of the engine"
    assert list(tmp_path.iterdir()) == []


def test_an_exit_that_was_seen_is_believed_across_an_engine_restart(tmp_path: Path):
    bench = Bench(tmp_path)
    spec = make_spec()
    first = make_run(spec)
    thread = settled_later(bench, first)
    bench.tools.spool.keep(first)
    first.release()
    thread.join(5)
    bench.reporter = FakeReporter()
    bench.tools = replace(bench.tools, reporter=bench.reporter)

    bench.engine.began = datetime.now(UTC) + timedelta(seconds=1)
    bench.adopt(make_run(spec, epoch=2))

    assert bench.report.outcome.status == "completed"
    assert bench.engine.containers == {}


def test_a_settled_run_leaves_nothing_in_the_spool(tmp_path: Path):
    bench = Bench(tmp_path)
    run = make_run()
    thread = settled_later(bench, run)
    bench.tools.spool.keep(run)
    assert len(list(tmp_path.iterdir())) == 1

    run.settle()
    thread.join(5)

    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_no_obstacle_to_adoption(tmp_path: Path):
    bench = Bench(tmp_path)
    run = make_run(epoch=2)
    (tmp_path / f"{run.spec.run_id}.run").write_bytes(b"\0\0\0\x08garbage")
    container = bench.leave(run, "true")
    bench.engine.begin(container)

    bench.adopt(run)

    assert bench.report.outcome.status == "completed"
