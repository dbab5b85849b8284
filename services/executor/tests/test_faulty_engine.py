"""What becomes of tasks on an engine that does what no real one can be made to do.

Whatever happens: a task ends, no container is started twice, no two of one task are at work at a time, and no
thread of the executor hangs. The fixture checks the last three after each test.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.executor import runtime as rt
from services.executor.tests.fake_engine.faults import (
    DONE_IN_SILENCE,
    REPLY_LOST,
    REQUEST_LOST,
    SILENCE,
    SILENCE_THEN_DONE,
    Fault,
    Refusal,
    answers,
    cut,
    done_when,
    shows,
)
from services.executor.tests.fake_engine.stand import MOST_LOST_RUNS, Stand
from services.executor.tests.fake_runtime import Program
from services.executor.tests.fake_scheduler import Row, wait_until

HELLO = Program([("stdout", b"hello"), ("stderr", b"hm")])
ENDLESS = Program([("stdout", b"hello")], runs_on=True)

FAULTS = {
    "request lost": REQUEST_LOST,
    "reply lost": REPLY_LOST,
    "silence": SILENCE,
    "silence, done late": SILENCE_THEN_DONE,
    "silence, done": DONE_IN_SILENCE,
    "500": answers(500),
    "500, done": answers(500, done="first"),
    "409": answers(409),
}


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    stand = Stand(tmp_path, monkeypatch)
    yield stand
    stand.check_slots_are_free()
    stand.daemon.engine.check_journal()
    stand.close()


def ends(row: Row) -> tuple[str, str | None]:
    assert row.finished is not None
    return row.finished["outcome"], row.finished["reason"]


def message(row: Row) -> str:
    assert row.finished is not None
    return str(row.finished["errorMsg"])


# One call, once.

REFUSED_START = [("start", "500"), ("start", "409")]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("operation", ["create", "attach", "start", "inspect", "image", "remove", "logs"])
def test_a_task_completes_whatever_goes_wrong_once(stand: Stand, operation: str, fault: str):
    stand.daemon.script.once(operation, FAULTS[fault])

    row = stand.run(HELLO)

    if (operation, fault) in REFUSED_START:
        assert ends(row) == ("failed", "engine_error")
        assert stand.starts(row) == 0
    else:
        assert ends(row) == ("completed", None)
        assert row.result == row.output("stdout") == b"hello"
        assert row.output("stderr") == b"hm"


@pytest.mark.parametrize("fault", ["reply lost", "silence, done", "silence, done late", "500, done"])
def test_a_start_that_happened_all_the_same_is_followed_and_not_repeated(stand: Stand, fault: str):
    stand.daemon.script.once("start", FAULTS[fault])

    row = stand.run_long()

    assert ends(row) == ("completed", None)
    assert row.result == b"hello"
    assert stand.starts(row) == 1


def test_faults_that_follow_each_other_are_survived_too(stand: Stand):
    script = stand.daemon.script
    script.once("create", REPLY_LOST, answers(500))
    script.once("attach", SILENCE)
    script.once("start", REPLY_LOST)
    script.once("inspect", REQUEST_LOST, answers(500), SILENCE)
    script.once("logs", cut(3, "hard"), answers(500))
    script.once("remove", REPLY_LOST)
    row = stand.add(ENDLESS)
    stand.scheduler.wait(lambda: row.output("stdout") == b"hello")

    stand.finish(row)

    assert ends(row) == ("completed", None)
    assert row.result == b"hello"


# Creating.


@pytest.mark.parametrize("fault", ["request lost", "silence", "500"])
def test_a_container_that_can_never_be_created_fails_its_run(stand: Stand, fault: str):
    stand.daemon.script.always("create", FAULTS[fault])

    row = stand.add(HELLO)
    stand.scheduler.wait_finished(row)

    assert ends(row) == ("failed", "engine_error")
    assert "engine" in message(row)
    assert stand.containers(row) == []


def test_a_create_that_the_engine_does_later_is_found_and_started_once(stand: Stand):
    done = threading.Event()
    stand.daemon.script.once("create", done_when(done))
    row = stand.add(HELLO)
    wait_until(lambda: stand.daemon.script.taken["create"] > 0)

    done.set()
    stand.scheduler.wait_finished(row)

    assert ends(row) == ("completed", None)
    assert len(stand.containers(row)) == stand.starts(row) == 1


def test_a_create_that_hangs_for_ever_fails_its_run_and_what_comes_of_it_is_never_started(stand: Stand):
    done = threading.Event()
    stand.daemon.script.once("create", done_when(done))
    row = stand.add(HELLO)

    stand.scheduler.wait_finished(row)
    asked = stand.daemon.engine.calls.count("create")
    done.set()
    stand.reap()

    assert ends(row) == ("failed", "engine_error")
    assert "already in use" in message(row)
    assert asked < 200
    wait_until(lambda: [each.name for each in stand.containers(row)] == [row.task["taskId"]])
    wait_until(lambda: not stand.daemon.engine.containers)
    assert stand.starts(row) == 0


@pytest.mark.parametrize("status", ["exited", "created", "running"])
@pytest.mark.parametrize("instance", [None, "another"])
def test_a_strangers_container_that_has_the_name_is_left_alone(stand: Stand, status: str, instance: str | None):
    row = stand.scheduler.add(command="x")
    stranger = stand.leave(row, status=status)
    stranger.options["Labels"].clear()
    if instance is not None:
        stranger.options["Labels"].update({rt.LABEL_INSTANCE: instance, rt.LABEL_RUN: "x"})

    stand.publish(row)
    stand.scheduler.wait_finished(row)

    assert ends(row) == ("failed", "engine_error")
    assert "isn't of this system" in message(row)
    assert list(stand.daemon.engine.containers.values()) == [stranger]
    assert stranger.signals == []
    with stand.daemon.engine.changed:
        stand.daemon.engine.containers.clear()


@pytest.mark.parametrize("fault", ["500", "reply lost", "request lost", "silence"])
def test_an_earlier_runs_container_that_is_not_removed_at_once_is_tried_again(stand: Stand, fault: str):
    row = stand.scheduler.add(command="true")
    stand.leave(row, status="exited")
    stand.daemon.script.once("remove", FAULTS[fault])

    stand.publish(row)
    stand.scheduler.wait_finished(row)

    assert ends(row) == ("completed", None)


def test_an_earlier_runs_container_that_can_never_be_removed_fails_the_run(stand: Stand):
    row = stand.scheduler.add(command="true")
    stand.leave(row, status="exited")
    stand.daemon.script.always("remove", answers(500, "device or resource busy"))

    stand.publish(row)
    stand.scheduler.wait_finished(row)

    assert ends(row) == ("failed", "engine_error")
    assert "busy" in message(row)


def test_a_run_that_is_stopped_while_its_create_hangs_is_never_started(stand: Stand):
    stand.daemon.script.always("create", SILENCE_THEN_DONE)
    row = stand.add(HELLO)
    wait_until(lambda: row.status == "claimed")

    row.stop = True
    stand.scheduler.wait_finished(row)
    stand.reap()

    assert ends(row) == ("cancelled", None)
    stand.daemon.script.clear()
    wait_until(lambda: not stand.daemon.engine.containers)
    assert stand.starts(row) == 0


# Starting.


@pytest.mark.parametrize("fault", ["request lost", "silence"])
def test_a_start_that_never_arrives_is_lost_each_time_and_never_repeated_on_the_same_container(
    stand: Stand, fault: str
):
    stand.daemon.script.always("start", FAULTS[fault])

    row = stand.run(HELLO)

    assert row.status == "lost"
    assert stand.starts(row) == 0
    assert len(stand.containers(row)) == MOST_LOST_RUNS
    wait_until(lambda: not stand.daemon.engine.containers)


@pytest.mark.parametrize("answer", ["silence", Refusal(500, "context deadline exceeded")], ids=["silence", "500"])
def test_a_start_that_is_still_in_progress_is_waited_for_and_followed(stand: Stand, answer):
    done = threading.Event()
    stand.daemon.script.once("start", Fault(done="late", answer=answer, until=done))
    row = stand.add(ENDLESS)
    wait_until(lambda: stand.daemon.script.taken["start"] > 0)
    asked = stand.daemon.engine.calls.count("inspect")
    wait_until(lambda: stand.daemon.engine.calls.count("inspect") > asked)
    assert stand.containers(row)[0].status == "created"

    done.set()
    stand.finish(row)

    assert ends(row) == ("completed", None)
    assert stand.starts(row) == 1


def test_an_engine_that_shows_created_of_what_runs_has_it_neither_removed_nor_started_again(stand: Stand):
    stand.daemon.script.once("start", REPLY_LOST)
    stand.daemon.script.once("inspect", shows(Status="created"))

    row = stand.run_long()

    assert ends(row) == ("completed", None)
    assert stand.starts(row) == 1


@pytest.mark.parametrize("fault", ["500", "silence", "request lost"])
def test_a_refused_start_whose_container_can_not_be_removed_ends_all_the_same(stand: Stand, fault: str):
    stand.daemon.script.once("start", answers(500, "no cgroup"))
    stand.daemon.script.always("remove", FAULTS[fault])

    row = stand.add(HELLO)
    stand.scheduler.wait_finished(row)

    assert row.status in ("failed", "lost")
    assert "no cgroup" in message(row) or row.status == "lost"
    assert stand.starts(row) == 0


# Looking at it.


def test_a_container_that_the_engine_tells_nothing_about_is_lost_once_it_is_proven_not_to_run(stand: Stand):
    stand.daemon.script.always("inspect", answers(500, "broken metadata"))

    row = stand.add(HELLO)
    stand.scheduler.wait_finished(row)

    assert row.status == "lost"
    assert "broken metadata" in message(row)
    assert not stand.daemon.engine.containers


@pytest.mark.parametrize("fault", ["500", "request lost"])
def test_a_container_that_runs_is_kept_while_the_engine_tells_nothing_about_it(stand: Stand, fault: str):
    stand.daemon.script.always("inspect", FAULTS[fault])
    row = stand.add(ENDLESS)
    stand.scheduler.wait(lambda: row.started is not None)
    stand.daemon.script.once("attach", Fault())
    stand.daemon.engine.break_streams()
    wait_until(lambda: stand.daemon.engine.calls.count("remove") > 0)
    assert row.status == "running"

    stand.daemon.script.clear()
    stand.finish(row, 3)

    assert row.finished is not None
    assert row.finished["exitCode"] == 3


def test_a_container_that_vanished_is_lost_and_its_task_runs_again(stand: Stand):
    row = stand.add(ENDLESS)
    stand.scheduler.wait(lambda: row.started is not None)
    container = stand.containers(row)[0]

    with stand.daemon.engine.changed:
        stand.daemon.engine.containers.clear()
        stand.daemon.engine.finish(container, 137)
    stand.scheduler.wait_finished(row)

    assert row.status == "lost"
    assert "removed by someone else" in message(row)


@pytest.mark.parametrize("fault", ["500", "silence", "request lost"])
def test_a_result_is_reported_though_its_image_can_not_be_looked_at(stand: Stand, fault: str):
    stand.daemon.script.always("image", FAULTS[fault])

    row = stand.add(HELLO)
    stand.scheduler.wait_finished(row)

    assert ends(row) == ("completed", None)
    assert row.result == b"hello"


# Following its output.


@pytest.mark.parametrize("how", ["gently", "hard"])
@pytest.mark.parametrize("after_bytes", [0, 3, 8, 11, 13])
@pytest.mark.parametrize("operation", ["attach", "logs"])
def test_no_byte_is_lost_with_a_stream_that_breaks(stand: Stand, operation: str, after_bytes: int, how: Any):
    if operation == "logs":
        stand.daemon.script.always("attach", answers(500))
    stand.daemon.script.once(operation, cut(after_bytes, how))
    row = stand.add(ENDLESS)
    # It is read once more after it was seen to run on.
    wait_until(lambda: any(each.reads == 2 for each in stand.containers(row)))

    stand.finish(row)

    assert ends(row) == ("completed", None)
    assert row.result == row.output("stdout") == b"hello"


def test_a_stream_that_breaks_within_a_frame_as_its_container_ends_is_read_again(stand: Stand):
    stand.daemon.script.once("attach", cut(11, "gently"))

    row = stand.add(HELLO)
    stand.scheduler.wait_finished(row)

    assert ends(row) == ("completed", None)
    assert row.result == b"hello"


@pytest.mark.parametrize("fault", [answers(500), answers(404), cut(11, "gently")], ids=["500", "404", "cut"])
def test_output_that_can_not_be_had_is_marked(stand: Stand, fault: Fault):
    stand.daemon.script.always("attach", answers(500))
    stand.daemon.script.always("logs", fault)

    row = stand.add(HELLO)
    stand.scheduler.wait_finished(row)

    assert ends(row) == ("completed", None)
    assert b"may be missing" in row.output("stdout")


def test_an_end_that_is_seen_beside_broken_connections_only_is_not_believed_and_not_tried_for_ever(stand: Stand):
    """Whether the engine was there all the time can't be told."""
    stand.daemon.script.always("attach", answers(500))
    stand.daemon.script.always("logs", cut(11, "hard"))

    row = stand.run(HELLO)

    assert row.status == "lost"
    assert stand.starts(row) == MOST_LOST_RUNS


@pytest.mark.parametrize("status", [409, 500])
def test_a_container_that_is_just_being_removed_is_gone(stand: Stand, status: int):
    script, runtime = stand.daemon.script, stand.open_runtime()
    script.once("start", answers(status, "container is marked for removal and cannot be started"))
    script.once("logs", answers(status, "can not get logs from container which is dead or marked for removal"))

    with pytest.raises(rt.ContainerGone):
        runtime.start("there")
    with pytest.raises(rt.ContainerGone):
        list(runtime.follow("there", on_open=lambda _interrupt: None))


@pytest.mark.parametrize("operation", ["attach", "logs"])
def test_a_stream_that_falls_silent_does_not_hold_its_run(stand: Stand, operation: str):
    if operation == "logs":
        stand.daemon.script.always("attach", answers(500))
    stand.daemon.script.once(operation, cut(8, "silently"))
    stand.reap()

    row = stand.run_long()

    assert ends(row) == ("completed", None)
    assert row.result == b"hello"


def test_memory_that_ran_out_is_told_though_the_engine_says_so_in_an_event_only(stand: Stand):
    row = stand.run(Program(exit_code=137, oom_event=True))

    assert ends(row) == ("failed", "oom_killed")


@pytest.mark.parametrize("fault", ["500", "silence", "request lost"])
def test_a_kill_is_told_as_such_when_the_engine_tells_no_events(stand: Stand, fault: str):
    stand.daemon.script.always("events", FAULTS[fault])

    row = stand.add(Program(exit_code=137, oom_event=True))
    stand.scheduler.wait_finished(row)

    assert ends(row) == ("failed", "exit_nonzero")


# Stopping.


@pytest.mark.parametrize("fault", ["reply lost", "silence, done", "500, done", "request lost", "silence", "500"])
def test_a_time_limit_is_told_as_such_whatever_becomes_of_the_signal(stand: Stand, fault: str):
    stand.daemon.script.once("kill", FAULTS[fault])

    row = stand.add(Program(runs_on=True, sigterm_exit_code=0), timeoutSeconds=0.2)
    stand.scheduler.wait_finished(row)

    assert ends(row) == ("failed", "timeout")


@pytest.mark.parametrize("fault", ["reply lost", "silence, done", "500, done", "409", "request lost"])
def test_a_cancelled_run_is_told_as_such_whatever_becomes_of_the_signal(stand: Stand, fault: str):
    stand.daemon.script.once("kill", FAULTS[fault])
    row = stand.add(ENDLESS)
    stand.scheduler.wait(lambda: row.started is not None)

    row.stop = True
    stand.scheduler.wait_finished(row)

    assert ends(row) == ("cancelled", None)


def test_a_signal_that_hangs_delays_no_other(stand: Stand):
    hung, other = stand.add(ENDLESS), stand.add(ENDLESS)
    stand.scheduler.wait(lambda: bool(hung.started and other.started))
    never = threading.Event()
    stand.daemon.script.always("kill", done_when(never), of=hung.task["taskId"])

    hung.stop = True
    wait_until(lambda: stand.daemon.script.taken["kill"] > 0)
    other.stop = True
    stand.scheduler.wait_finished(other)
    assert hung.finished is None

    never.set()
    stand.scheduler.wait_finished(hung)
    assert ends(hung) == ends(other) == ("cancelled", None)


# Removing.


@pytest.mark.parametrize("fault", ["request lost", "silence", "500", "409"])
def test_a_container_that_can_not_be_removed_holds_no_slot_and_no_other_removal(stand: Stand, fault: str):
    stuck = stand.add(HELLO)
    stand.daemon.script.always("remove", FAULTS[fault], of=stuck.task["taskId"])

    rows = [stuck, *(stand.add(HELLO) for _ in range(4))]
    for row in rows:
        stand.scheduler.wait_finished(row)
    stand.reap()

    wait_until(lambda: [each.name for each in stand.daemon.engine.containers.values()] == [stuck.task["taskId"]])
    assert [ends(row) for row in rows] == [("completed", None)] * 5
    stand.daemon.script.clear()
    wait_until(lambda: not stand.daemon.engine.containers)


# Pulling.


@pytest.mark.parametrize("fault", [SILENCE, cut(5, "silently")], ids=["at its beginning", "in the middle"])
def test_a_pull_that_stops_fails_at_its_limit(stand: Stand, fault: Fault):
    stand.daemon.engine.registry["tool:1"] = None
    stand.daemon.script.always("pull", fault)

    row = stand.add(HELLO, image="tool:1")
    stand.scheduler.wait_finished(row)

    assert ends(row) == ("failed", "image_pull_failed")
    assert "longer than 1 s" in message(row)


@pytest.mark.parametrize("fault", [REQUEST_LOST, REPLY_LOST, cut(5, "hard"), cut(5, "gently")], ids=str)
def test_a_pull_that_breaks_is_begun_again(stand: Stand, fault: Fault):
    stand.daemon.engine.registry["tool:1"] = None
    stand.daemon.script.once("pull", fault)

    row = stand.add(HELLO, image="tool:1")
    stand.scheduler.wait_finished(row)

    assert ends(row) == ("completed", None)


def test_a_pull_that_ends_without_the_image_has_failed(stand: Stand):
    stand.daemon.script.always("pull", Fault(done="never"))

    row = stand.add(HELLO, image="tool:1")
    stand.scheduler.wait_finished(row)

    assert ends(row) == ("failed", "image_pull_failed")


# The engine as a whole.


@pytest.mark.parametrize("fault", ["silence", "request lost", "500"])
def test_an_engine_that_does_not_answer_is_told_and_gets_nothing_new(stand: Stand, fault: str):
    row = stand.add(ENDLESS)
    stand.scheduler.wait(lambda: row.started is not None)

    stand.daemon.script.always("info", FAULTS[fault])
    wait_until(lambda: not stand.monitor.ready)
    waiting = stand.add(HELLO)
    with pytest.raises(rt.EngineUnavailable):
        stand.monitor.probe()
    assert stand.messages.capacity == 0
    assert waiting.status == "queued"
    assert row.finished is None

    stand.daemon.script.clear()
    stand.scheduler.wait_finished(waiting)
    assert stand.monitor.probe()["engineId"] == "engine-1"
    stand.finish(row)
    assert ends(row) == ("completed", None)


@pytest.mark.parametrize("exit_code", [0, 137])
@pytest.mark.parametrize("how", ["restart", "crash"])
def test_an_exit_that_an_engines_own_end_made_is_not_believed(stand: Stand, how: str, exit_code: int):
    row = stand.add(ENDLESS)
    stand.scheduler.wait(lambda: row.started is not None)

    getattr(stand.daemon, how)(exit_code=exit_code)
    stand.scheduler.wait_finished(row)

    assert row.status == "lost"
    assert "engine stopped" in message(row)
    again = stand.run_again(row)
    stand.finish(again)
    assert ends(again) == ("completed", None)


@pytest.mark.parametrize("attached", [True, False])
def test_an_exit_during_an_engines_orderly_stop_is_not_believed(stand: Stand, attached: bool):
    """The engine still serves who is connected while it ends its containers, and waits for the slowest of them."""
    if not attached:
        # The connection on which the engine's copy was read to its end serves the next call, too.
        stand.daemon.script.once("attach", answers(500))
    row = stand.add(Program(runs_on=True, sigterm_exit_code=0))
    stand.scheduler.wait(lambda: row.started is not None)

    stand.daemon.stop_listening()
    stand.daemon.end_containers()
    wait_until(lambda: not stand.monitor.ready)
    assert row.finished is None
    stand.daemon.down()
    stand.daemon.up()
    stand.scheduler.wait_finished(row)

    assert row.status == "lost"


def test_containers_that_outlive_their_engine_are_followed_to_their_own_end(stand: Stand):
    row = stand.add(ENDLESS)
    stand.scheduler.wait(lambda: row.started is not None)

    stand.daemon.down()
    stand.daemon.up()
    wait_until(lambda: stand.monitor.ready)
    stand.daemon.engine.write(stand.containers(row)[0], "stdout", b", again")
    stand.scheduler.wait(lambda: row.output("stdout") == b"hello, again")
    stand.finish(row, 4)

    assert row.finished is not None
    assert row.finished["exitCode"] == 4
    assert row.result == b"hello, again"


def test_an_engine_that_comes_back_without_its_containers_has_lost_their_runs(stand: Stand):
    row = stand.add(ENDLESS)
    stand.scheduler.wait(lambda: row.started is not None)

    stand.daemon.down()
    stand.daemon.end_containers(137)
    stand.daemon.engine.containers.clear()
    stand.daemon.up()
    stand.scheduler.wait_finished(row)

    assert row.status == "lost"


def test_an_engine_that_comes_back_as_one_that_speaks_a_newer_version_is_used_on(stand: Stand):
    row = stand.add(ENDLESS)
    stand.scheduler.wait(lambda: row.started is not None)

    stand.daemon.down()
    stand.daemon.api.version = stand.daemon.api.oldest_version = "1.44"
    stand.daemon.up()
    stand.finish(row)
    after = stand.run(HELLO)

    assert row.status in ("completed", "lost")
    assert ends(after) == ("completed", None)


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        *((operation, fault) for operation in ("create", "wait", "remove") for fault in ("reply lost", "silence")),
        ("create", "silence, done late"),
        ("start", "reply lost"),
        ("logs", "500"),
        ("networks", "request lost"),
    ],
)
def test_a_guard_that_can_not_be_set_is_tried_again_and_leaves_no_container(
    stand: Stand, operation: str, fault: str
):
    stand.daemon.script.spared = None
    stand.daemon.script.once(operation, FAULTS[fault])

    stand.monitor.lost(rt.EngineUnavailable("a look is due"))
    wait_until(lambda: stand.daemon.script.taken[operation] > 0)
    wait_until(lambda: stand.monitor.ready)

    wait_until(lambda: not stand.daemon.engine.containers)
