from __future__ import annotations

import pytest

from services.executor import runtime as rt
from services.executor.outcome import decide_outcome, decide_pull_failure, decide_start_failure
from services.executor.tests.builders import make_spec, make_state

SPEC = make_spec(timeoutSeconds=7, memoryMb=32)


def decide(stderr: str = "", stopped_for=None, **state):
    return decide_outcome(make_state(**state), spec=SPEC, stopped_for=stopped_for, stderr_tail=stderr)


def test_exit_code_zero_is_completed():
    assert decide().status == "completed"
    assert decide().error_msg is None


@pytest.mark.parametrize(
    ("state", "stderr", "stopped_for", "reason", "word"),
    [
        ({"exit_code": 3}, "boom\n", None, "exit_nonzero", "boom"),
        ({"exit_code": 3}, "", None, "exit_nonzero", "nothing on stderr"),
        ({"exit_code": 137}, "", None, "exit_nonzero", "(killed by SIGKILL); if nobody sent that signal, 32 MB"),
        ({"exit_code": 139}, "", None, "exit_nonzero", "SIGSEGV"),
        ({"exit_code": 255}, "", None, "exit_nonzero", "exit code 255."),
        ({"exit_code": 137, "oom_killed": True}, "", None, "oom_killed", "memoryMb"),
        ({"exit_code": 1, "oom_killed": True}, "", None, "oom_killed", "32 MB"),
        ({"exit_code": 143}, "", "timeout", "timeout", "7 s"),
        ({"exit_code": 0}, "", "timeout", "timeout", "timeoutSeconds"),
        (
            {"exit_code": 127},
            "[FATAL tini (7)] exec nosuch failed: No such file or directory\n",
            None,
            "invalid_command",
            "No such file",
        ),
        (
            {"exit_code": 126},
            "[FATAL tini (7)] exec /etc failed: Permission denied\n",
            None,
            "invalid_command",
            "Permission denied",
        ),
        ({"exit_code": 127}, "sh: nosuch: not found\n", None, "exit_nonzero", "not found"),
        (
            {"exit_code": 127},
            "hello\n[FATAL tini (7)] exec x failed: No such file or directory\n",
            None,
            "exit_nonzero",
            "code 127",
        ),
    ],
)
def test_each_failure_has_its_reason_and_a_message_that_helps(state, stderr, stopped_for, reason, word):
    outcome = decide(stderr, stopped_for, **state)

    assert (outcome.status, outcome.reason) == ("failed", reason)
    assert word in outcome.error_msg


def test_a_process_killed_for_memory_inside_a_run_that_went_well_is_no_failure():
    assert decide(exit_code=0, oom_killed=True).status == "completed"


def test_a_cancelled_run_is_cancelled_however_it_ended():
    assert decide(stopped_for="cancelled", exit_code=137).status == "cancelled"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (rt.InvalidReference("x"), "image_not_found"),
        (rt.CommandRefused("x"), "invalid_command"),
        (rt.EngineRefused("x"), "engine_error"),
        (rt.ImageMissing("x"), "engine_error"),
    ],
)
def test_what_the_engine_refuses_has_its_reason(error, reason):
    assert decide_start_failure(error).reason == reason


def test_more_cores_than_the_engine_has_are_named_by_their_field():
    error = rt.EngineRefused("Range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available")

    assert "Lower resources.cpus." in str(decide_start_failure(error).error_msg)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (rt.ImageNotFound("x"), "image_not_found"),
        (rt.InvalidReference("x"), "image_not_found"),
        (rt.PullFailed("x"), "image_pull_failed"),
        (rt.EngineRefused("x"), "image_pull_failed"),
    ],
)
def test_what_the_registry_refuses_has_its_reason(error, reason):
    assert decide_pull_failure(error, image="a:1").reason == reason
