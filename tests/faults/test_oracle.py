from __future__ import annotations

from tests.faults.oracle import Event, judge


def event(at: int, action: str, *, task: str = "task", run: str = "run", container: str = "container") -> Event:
    return Event(at, action, task, run, container)


def test_one_container_that_began_and_ended_is_one_interval_without_an_overlap():
    findings = judge([event(30, "die"), event(10, "start")])

    (interval,) = findings.intervals["task"]
    assert (interval.began, interval.ended) == (10, 30)
    assert not findings.overlaps
    assert not findings.restarts
    assert not findings.unfinished


def test_a_second_run_after_the_end_of_the_first_is_no_overlap():
    findings = judge(
        [
            event(10, "start", container="a", run="1"),
            event(20, "die", container="a", run="1"),
            event(20, "start", container="b", run="2"),
            event(30, "die", container="b", run="2"),
        ]
    )

    assert not findings.overlaps


def test_a_second_run_before_the_end_of_the_first_is_an_overlap():
    findings = judge(
        [
            event(10, "start", container="a", run="1"),
            event(19, "start", container="b", run="2"),
            event(20, "die", container="a", run="1"),
            event(30, "die", container="b", run="2"),
        ]
    )

    ((earlier, later),) = findings.overlaps
    assert (earlier.run_id, later.run_id) == ("1", "2")


def test_a_container_whose_end_nobody_saw_overlaps_all_that_comes_after_it():
    findings = judge([event(10, "start", container="a"), event(90, "start", container="b")])

    assert len(findings.overlaps) == 1
    assert len(findings.unfinished) == 2


def test_containers_of_two_tasks_may_run_at_a_time():
    findings = judge(
        [
            event(10, "start", task="one", container="a"),
            event(11, "start", task="two", container="b"),
            event(20, "die", task="one", container="a"),
            event(21, "die", task="two", container="b"),
        ]
    )

    assert not findings.overlaps


def test_a_container_that_is_started_again_is_a_restart_of_its_run():
    findings = judge([event(10, "start"), event(20, "die"), event(30, "start"), event(40, "die")])

    assert findings.restarts == ["run"]
    assert not findings.overlaps


def test_a_container_whose_engine_went_down_ended_with_it():
    findings = judge(
        [event(10, "start", container="a"), event(50, "start", container="b"), event(60, "die", container="b")],
        engine_ends=[30, 90],
    )

    earlier, later = findings.intervals["task"]
    assert (earlier.ended, earlier.with_engine) == (30, True)
    assert (later.ended, later.with_engine) == (60, False)
    assert not findings.overlaps
    assert not findings.unfinished


def test_a_container_that_was_started_after_the_engines_end_is_still_running():
    findings = judge([event(40, "start")], engine_ends=[30])

    assert len(findings.unfinished) == 1
