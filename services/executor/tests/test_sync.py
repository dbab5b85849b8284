"""The conversation with the scheduler, against its rules in memory."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from services.executor import sync as sync_module
from services.executor.held_run import FinishedReport, HeldRun, StartedReport
from services.executor.outcome import Outcome
from services.executor.output import CHUNK_BYTES
from services.executor.scheduler_client import Replaced, SchedulerAway
from services.executor.sync import Adoption, Sync
from services.executor.sync_request import Grant, Identity
from services.executor.tests.fake_scheduler import FakeScheduler, Row
from tests.polling import wait_until


class FakeListener:
    def __init__(self) -> None:
        self.adopted: list[Adoption] = []
        self.stopped: list[HeldRun] = []
        self.images: list[str] = []
        self.was_replaced = False

    def adopt(self, adoption: Adoption) -> None:
        self.adopted.append(adoption)

    def stop_requested(self, run: HeldRun) -> None:
        self.stopped.append(run)

    def prefetch(self, images: Sequence[str]) -> None:
        self.images.extend(images)

    def drain_changed(self) -> None:
        """Read off the sync."""

    def replaced(self) -> None:
        self.was_replaced = True


class Bench:
    """A scheduler in memory, and one executor's sync, stepped by hand."""

    def __init__(self) -> None:
        self.scheduler = FakeScheduler()
        self.listener = FakeListener()
        self.lose_answer = False
        self.other_boot = False
        self.sync = self.boot("boot-1")

    def boot(self, boot_id: str) -> Sync:
        identity = Identity(executor_id="executor-1", boot_id=boot_id, engine_id="engine-1", host="here", slots=2)
        return Sync(identity=identity, post=self._post, listener=self.listener)

    def claim(self, row: Row) -> HeldRun:
        grants = self.ask(row)
        self.sync.run_once()
        run = grants.get_nowait().run
        assert run is not None
        return run

    def ask(self, row: Row) -> queue.SimpleQueue[Grant]:
        """Where the answer to a claim comes in."""
        grants: queue.SimpleQueue[Grant] = queue.SimpleQueue()
        self.sync.claim(read_id(row), grants.put)
        return grants

    def _post(self, body: Any) -> Any:
        if self.scheduler.away:
            raise SchedulerAway("away")
        if self.other_boot:
            raise Replaced("a later start has taken its place")
        answer = self.scheduler.answer(body)
        if self.lose_answer:
            raise SchedulerAway("the answer was lost")
        return answer


def read_id(row: Row) -> UUID:
    return UUID(row.task["runId"])


def finished(result: bytes = b"") -> FinishedReport:
    now = datetime.now(UTC)
    return FinishedReport(
        outcome=Outcome("completed", exit_code=0),
        result=result,
        started_at=now,
        finished_at=now,
        image_digest=None,
        container_id="c",
    )


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_claim_is_granted_with_its_task_and_epoch(bench: Bench):
    row = bench.scheduler.add(command="echo")

    run = bench.claim(row)

    assert run.spec.command == "echo"
    assert run.epoch == 1
    assert bench.sync.held_count == 1


def test_of_output_as_much_is_kept_as_the_operator_says(bench: Bench):
    identity = Identity(executor_id="executor-1", boot_id="boot-2", engine_id="engine-1", host="here", slots=2)
    bench.sync = Sync(identity=identity, post=bench._post, listener=bench.listener, output_cap_bytes=3)
    run = bench.claim(bench.scheduler.add())

    run.output.append("stdout", b"12345")

    (chunk,) = run.output.take(1000)
    assert chunk.data.startswith(b"123\n[output truncated")


def test_a_run_that_is_not_to_be_had_is_refused(bench: Bench):
    row = bench.scheduler.add()
    row.status = "cancelled"
    grants = bench.ask(row)

    bench.sync.run_once()

    assert grants.get_nowait() == Grant(refusal="not_queued")


def test_a_claimed_task_that_cannot_be_read_fails_instead_of_going_round_for_ever(bench: Bench):
    row = bench.scheduler.add(timeoutSeconds="soon")
    grants = bench.ask(row)

    bench.sync.run_once()
    bench.sync.run_once()
    bench.sync.run_once()

    assert grants.get_nowait() == Grant(refusal="unreadable")
    assert row.finished is not None
    assert (row.finished["outcome"], row.finished["reason"]) == ("failed", "engine_error")
    assert row.finished_reports == 1
    assert bench.sync.held_count == 0


def test_a_second_message_of_a_held_run_is_refused_here(bench: Bench):
    row = bench.scheduler.add()
    bench.claim(row)

    grants = bench.ask(row)

    assert grants.get_nowait() == Grant(refusal="held_here")


def test_a_claim_whose_answer_was_lost_is_granted_again(bench: Bench):
    row = bench.scheduler.add()
    grants = bench.ask(row)
    bench.lose_answer = True
    with pytest.raises(SchedulerAway):
        bench.sync.run_once()
    bench.lose_answer = False

    bench.sync.run_once()

    run = grants.get_nowait().run
    assert run is not None
    assert run.epoch == row.epoch == 1


def test_claims_reports_and_output_travel_together(bench: Bench):
    first = bench.claim(bench.scheduler.add())
    second = bench.ask(bench.scheduler.add())
    first.output.append("stdout", b"hello")
    bench.sync.report_finished(first, finished(b"hello"))
    before = len(bench.scheduler.requests)

    bench.sync.run_once()

    assert second.get_nowait().run is not None
    assert len(bench.scheduler.requests) == before + 1
    assert first.settled
    assert bench.scheduler.rows[first.key[0]].output("stdout") == b"hello"
    assert bench.scheduler.rows[first.key[0]].result == b"hello"


def test_a_report_is_sent_until_it_is_answered_and_counts_once(bench: Bench):
    row = bench.scheduler.add()
    run = bench.claim(row)
    run.output.append("stdout", b"x")
    bench.sync.report_finished(run, finished())
    bench.lose_answer = True
    with pytest.raises(SchedulerAway):
        bench.sync.run_once()
    assert not run.settled
    bench.lose_answer = False

    bench.sync.run_once()

    assert run.settled
    assert row.finished_reports == 2
    assert row.output("stdout") == b"x"
    assert bench.sync.held_count == 0


def test_a_report_that_is_not_accepted_is_settled_too(bench: Bench):
    row = bench.scheduler.add()
    run = bench.claim(row)
    row.status = "cancelled"
    bench.sync.report_finished(run, finished())

    bench.sync.run_once()

    assert run.settled


def test_a_report_waits_for_its_output(bench: Bench):
    row = bench.scheduler.add()
    run = bench.claim(row)
    run.output.append("stdout", b"x" * (20 * CHUNK_BYTES))
    bench.sync.report_finished(run, finished())

    while not run.settled:
        bench.sync.run_once()

    assert len(row.output("stdout")) == 20 * CHUNK_BYTES
    assert all(_size(request) < 1024 * 1024 for request in bench.scheduler.requests)


def test_many_large_results_are_split_over_requests_below_the_limit(bench: Bench):
    runs = [bench.claim(bench.scheduler.add()) for _ in range(12)]
    for run in runs:
        run.output.append("stdout", b"\xff" * 65536)
        bench.sync.report_finished(run, finished(b"\xff" * 65536))

    while not all(run.settled for run in runs):
        bench.sync.run_once()

    assert all(_size(request) < 1024 * 1024 for request in bench.scheduler.requests)


def test_a_started_report_is_sent_only_when_the_run_still_goes(bench: Bench):
    short, long = bench.scheduler.add(), bench.scheduler.add()
    short_run, long_run = bench.claim(short), bench.claim(long)
    report = StartedReport("c", datetime.now(UTC), due=time.monotonic() + 0.05)
    bench.sync.report_started(short_run, report)
    bench.sync.report_started(long_run, report)
    bench.sync.report_finished(short_run, finished())

    bench.sync.run_once()
    assert long.started is None
    wait_until(lambda: time.monotonic() > report.due)
    bench.sync.run_once()

    assert short.started is None
    assert short.finished is not None
    assert long.started is not None


def test_a_renewed_lease_counts_from_before_the_request(bench: Bench):
    run = bench.claim(bench.scheduler.add())
    run._renewed_at -= 100

    assert not run.lease_is_fresh
    bench.sync.run_once()
    assert run.lease_is_fresh


def test_a_scheduler_that_is_away_renews_nothing_and_loses_nothing(bench: Bench):
    run = bench.claim(bench.scheduler.add())
    run._renewed_at -= 100
    bench.scheduler.away = True

    with pytest.raises(SchedulerAway):
        bench.sync.run_once()

    assert not run.lease_is_fresh
    assert bench.sync.held_count == 1


def test_a_lease_that_is_another_executors_is_released(bench: Bench):
    row = bench.scheduler.add()
    run = bench.claim(row)
    row.holder, row.epoch = "executor-2", 2

    bench.sync.run_once()

    assert run.released
    assert bench.sync.held_count == 0


def test_an_executor_whose_place_is_taken_lets_everything_go(bench: Bench):
    run = bench.claim(bench.scheduler.add())
    bench.other_boot = True
    thread = threading.Thread(target=bench.sync.run, daemon=True)
    thread.start()

    wait_until(lambda: bench.listener.was_replaced)

    assert run.released
    assert bench.sync.held_count == 0
    bench.sync.end()
    thread.join(10)


def test_a_stop_is_told_once(bench: Bench):
    row = bench.scheduler.add()
    run = bench.claim(row)
    row.stop = True

    bench.sync.run_once()
    bench.sync.run_once()

    assert run.stop_asked == "cancelled"
    assert bench.listener.stopped == [run]


def test_a_new_boot_adopts_what_the_former_held_behind_its_output(bench: Bench):
    row = bench.scheduler.add()
    run = bench.claim(row)
    run.output.append("stdout", b"before")
    bench.sync.run_once()

    again = bench.boot("boot-2")
    again.run_once()

    (adoption,) = bench.listener.adopted
    assert adoption.run.epoch == 2
    adoption.run.output.append("stdout", b"before after")
    again.report_finished(adoption.run, finished())
    again.run_once()
    assert row.output("stdout") == b"before after"
    assert row.finished is not None


def test_an_adoption_of_a_run_still_held_under_an_old_epoch_replaces_it(bench: Bench):
    row = bench.scheduler.add()
    run = bench.claim(row)
    bench.scheduler.adoptions.append(row.task["runId"])

    bench.sync.run_once()

    assert run.released
    assert [each.run.epoch for each in bench.listener.adopted] == [2]
    assert bench.sync.held_count == 1


def test_the_reapers_question_is_answered_with_the_next_sync(bench: Bench):
    row = bench.scheduler.add()
    bench.claim(row)
    run_id = row.task["runId"]
    unknown = "00000000-0000-0000-0000-000000000000"

    assert bench.sync.ask_live(run_id) is None
    assert bench.sync.ask_live(unknown) is None
    bench.sync.run_once()

    assert bench.sync.ask_live(run_id) is True
    assert bench.sync.ask_live(unknown) is False


def test_a_question_whose_answer_was_lost_stays_open(bench: Bench):
    run_id = bench.scheduler.add().task["runId"]
    bench.sync.ask_live(run_id)
    bench.lose_answer = True
    with pytest.raises(SchedulerAway):
        bench.sync.run_once()

    assert bench.sync.ask_live(run_id) is None
    bench.lose_answer = False
    bench.sync.run_once()
    assert bench.sync.ask_live(run_id) is True


def test_images_to_fetch_are_passed_on(bench: Bench):
    bench.scheduler.prefetch = ["a:1"]

    bench.sync.run_once()

    assert bench.listener.images == ["a:1"]


def test_a_task_that_cannot_be_read_stops_nobody_else(bench: Bench):
    bad, good = bench.scheduler.add(), bench.scheduler.add()
    bad.task["timeoutSeconds"] = "never"
    grants = bench.ask(bad)

    run = bench.claim(good)

    assert grants.get_nowait().run is None
    assert run.spec.run_id == read_id(good)


def test_the_loop_asks_a_scheduler_that_is_away_until_it_answers(bench: Bench):
    bench.scheduler.away = True
    thread = threading.Thread(target=bench.sync.run, daemon=True)
    thread.start()
    grants = bench.ask(bench.scheduler.add())

    assert not bench.sync.wait_first(0.3)
    bench.scheduler.away = False

    assert bench.sync.wait_first(5)
    assert grants.get(timeout=5).run is not None
    bench.sync.end()
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize(("hinted", "is_prompt"), [("executor-1", True), ("", True), ("executor-2", False)])
def test_a_hint_brings_the_next_sync_about_for_whom_it_is_meant(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, hinted: str, is_prompt: bool
):
    monkeypatch.setattr(sync_module, "IDLE_INTERVAL_SECONDS", 600.0)
    thread = threading.Thread(target=bench.sync.run, daemon=True)
    thread.start()
    assert bench.sync.wait_first(5)

    bench.sync.hint(hinted)
    if is_prompt:
        bench.scheduler.wait(lambda: len(bench.scheduler.requests) > 1)

    bench.sync.end()
    thread.join(5)
    assert len(bench.scheduler.requests) == 1 + is_prompt


def _size(request: Any) -> int:
    return len(json.dumps(request))
