"""The scheduler's pure decisions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scheduler.dispatch import RecentClaims, decide_sleep
from services.scheduler.images import is_image_allowed, is_image_reference
from services.scheduler.output import RESULT_BYTES, decode_result, keep_tail
from services.scheduler.states import (
    LIVE_RUN,
    RUN_MOVES,
    TASK_MOVES,
    TERMINAL_RUN,
    TERMINAL_TASK,
    RunStatus,
    TaskStatus,
)
from services.scheduler.waiting import Capacity, decide_waiting

NOW = datetime(2026, 1, 31, 8, 15, tzinfo=UTC)


def test_nothing_leaves_a_terminal_state_and_everything_else_can_end():
    assert all(not TASK_MOVES[status] for status in TERMINAL_TASK)
    assert all(not RUN_MOVES[status] for status in TERMINAL_RUN)
    assert all(RUN_MOVES[status] & TERMINAL_RUN for status in LIVE_RUN)
    assert all(TASK_MOVES[status] & TERMINAL_TASK for status in set(TaskStatus) - TERMINAL_TASK)


@given(
    st.fixed_dictionaries(
        {
            "status": st.sampled_from(list(TaskStatus)),
            "due_at": st.timedeltas(timedelta(days=-1), timedelta(days=1)).map(lambda due_in: NOW + due_in),
            "attempts": st.integers(0, 20),
            "max_attempts": st.integers(1, 20),
            "lost_count": st.integers(0, 5),
            "run_status": st.none() | st.sampled_from(list(RunStatus)),
            "is_published": st.booleans(),
            "capacity": st.builds(Capacity, st.integers(0, 9), st.integers(0, 99), st.integers(0, 99)),
        }
    )
)
def test_a_task_says_what_it_waits_for_until_it_runs(facts):
    waiting = decide_waiting(**facts, now=NOW)

    assert (waiting is not None) == (facts["status"] in (TaskStatus.PENDING, TaskStatus.QUEUED))
    assert waiting is None or waiting.text.endswith(".")


@pytest.mark.parametrize(
    ("capacity", "due_in", "attempts", "lost", "code"),
    [
        (Capacity(1, 4, 4), 0, 0, 0, "behind_others"),
        (Capacity(1, 4, 3), 0, 0, 0, "dispatch"),
        (Capacity(0, 0, 0), 0, 0, 0, "no_executor"),
        (Capacity(0, 0, 0), 5, 0, 0, "scheduled"),
        (Capacity(1, 4, 0), 5, 0, 1, "backoff"),
        (Capacity(1, 4, 0), 5, 2, 0, "backoff"),
        (Capacity(1, 4, 4), 0, 2, 0, "behind_others"),
    ],
)
def test_a_pending_task_waits_for_one_thing(capacity, due_in, attempts, lost, code):
    waiting = decide_waiting(
        status=TaskStatus.PENDING,
        due_at=NOW + timedelta(seconds=due_in),
        attempts=attempts,
        max_attempts=3,
        lost_count=lost,
        run_status=None,
        is_published=False,
        capacity=capacity,
        now=NOW,
    )

    assert waiting is not None
    assert waiting.code == code


@pytest.mark.parametrize(
    ("ahead", "code", "text"), [(0, "slot", "It is next"), (1, "behind_others", "1 other task goes")]
)
def test_the_first_in_line_waits_for_a_slot_and_not_for_others(ahead, code, text):
    waiting = decide_waiting(
        status=TaskStatus.PENDING,
        due_at=NOW,
        attempts=0,
        max_attempts=1,
        lost_count=0,
        run_status=None,
        is_published=False,
        capacity=Capacity(1, 4, 4),
        now=NOW,
        ahead=ahead,
    )

    assert waiting is not None
    assert waiting.code == code
    assert waiting.text.startswith(text)


@given(st.binary(max_size=300))
def test_any_output_becomes_text_that_json_can_hold(data):
    text = decode_result(data)

    assert text is not None
    text.encode("utf-8")


@given(st.text(alphabet="aé☃𝄞", min_size=1, max_size=9))
def test_a_cut_never_leaves_half_a_character(pattern):
    text = pattern * (RESULT_BYTES // len(pattern) + 1)

    decoded = decode_result(keep_tail(text.encode()))

    assert decoded is not None
    assert text.endswith(decoded)
    assert len(decoded.encode()) > RESULT_BYTES - 4


def test_bytes_that_are_no_text_are_shown_as_escapes():
    assert decode_result(b"a\xff\x00b") == "a\\xff\x00b"
    assert decode_result(b"\x80" * RESULT_BYTES) == "\\x80" * RESULT_BYTES
    assert decode_result(None) is None


@pytest.mark.parametrize(
    "image",
    [
        "busybox",
        "busybox:latest",
        "a/b/c",
        "localhost:5000/x",
        "reg.example.com/team/tool:1.0",
        "reg:5000/a__b-c.d/e@sha256:" + "0" * 64,
        "[::1]:5000/x:Tag_1",
        "Reg.Example/x",
    ],
)
def test_these_are_image_references(image):
    assert is_image_reference(image)


@pytest.mark.parametrize(
    "image",
    [
        "",
        "A",
        "a:",
        "a@",
        "a@sha256:1",
        "a//b",
        "/a",
        "a/",
        "a b",
        "a\n",
        "-a",
        "a:b:c",
        "../a",
        "http://a",
        "a" * 256,
    ],
)
def test_these_are_not(image):
    assert not is_image_reference(image)


@given(st.text(alphabet="aA0.-_/:@[]", max_size=255))
def test_the_check_of_an_image_takes_no_time(text):
    is_image_reference(text)


@pytest.mark.parametrize(
    ("image", "glob", "allowed"),
    [
        ("busybox", "busybox", True),
        ("busybox:1.36", "busybox", True),
        ("docker.io/library/busybox", "busybox:latest", True),
        ("busybox:1.36", "busybox:latest", False),
        ("busybox.evil.example/x", "busybox*", False),
        ("evil.example/library/busybox", "busybox", False),
        ("reg.example/team/a:1@sha256:" + "0" * 64, "reg.example/team/*", True),
        ("reg.example/team2/a", "reg.example/team/*", False),
        ("team/a", "docker.io/team/*", True),
        ("anything.example/x", "*", True),
    ],
)
def test_the_allow_list_compares_names_in_full(image, glob, allowed):
    assert is_image_allowed(image, [glob]) is allowed


@given(
    st.none() | st.timedeltas(timedelta(seconds=-1), timedelta(days=1)),
    st.booleans(),
    st.booleans(),
)
def test_the_loop_sleeps_until_the_next_due_time_and_never_longer_than_a_tick(due_in, is_held_back, has_room):
    tick = timedelta(seconds=1)

    sleep = decide_sleep(due_in, is_held_back=is_held_back, has_room=has_room, tick=tick)

    assert timedelta(0) <= sleep <= tick
    if has_room and not is_held_back and due_in is not None and due_in < tick:
        assert sleep == max(due_in, timedelta(0))
    if is_held_back:
        assert sleep > timedelta(0), "what is held back doesn't keep the loop busy"


def test_recent_claims_are_those_within_the_window():
    times = iter([0.0, 1.0, 2.0, 3.0, 5.5, 6.0, 6.5])
    claims = RecentClaims(timedelta(seconds=2), lambda: next(times))

    counts = [claims.note(total) for total in [100, 105, 110, 110, 110, 3, 5]]

    assert counts == [0, 5, 10, 5, 0, 0, 2]
