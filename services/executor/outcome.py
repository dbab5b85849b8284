"""How a run ended, and the sentence that its user reads about it. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from signal import Signals
from typing import Literal

from services.executor import runtime as rt
from services.executor.spec import TaskSpec

Status = Literal["completed", "failed", "cancelled", "lost"]
StopReason = Literal["cancelled", "timeout"]

SIGNAL_EXIT = 128
LAST_WORDS_CHARACTERS = 500

# What the engine says to more cores than it has.
_FEWER_CORES = "Range of CPUs"

# What the engine's init prints, and nothing else on standard error, when it can't execute the command.
_INIT_FAILED = re.compile(r"\[FATAL tini \(\d+\)\] exec (?P<command>.*) failed: (?P<error>[^\n]+)\n?", re.DOTALL)
_INIT_STATUSES = (1, 126, 127)


@dataclass(frozen=True, slots=True)
class Outcome:
    """`reason` is one of the API's when the run failed, and says why a lost one was given up otherwise."""

    status: Status
    reason: str | None = None
    exit_code: int | None = None
    error_msg: str | None = None


def decide_outcome(
    state: rt.ContainerState, *, spec: TaskSpec, stopped_for: StopReason | None, stderr_tail: str
) -> Outcome:
    """The outcome of an exited container.

    `stopped_for` is why this system sent it a signal, None when it ended by itself.
    """
    code = state.exit_code
    if stopped_for == "cancelled":
        return Outcome("cancelled", exit_code=code)
    if stopped_for == "timeout":
        return Outcome("failed", "timeout", code, _timeout_message(spec.time_limit))
    if state.oom_killed and code != 0:
        return Outcome("failed", "oom_killed", code, _memory_message(spec.memory_mb))
    if code == 0:
        return Outcome("completed", exit_code=0)
    init_error = _INIT_FAILED.fullmatch(stderr_tail)
    if init_error and code in _INIT_STATUSES:
        return Outcome("failed", "invalid_command", code, _command_message(init_error["error"]))
    return Outcome("failed", "exit_nonzero", code, _exit_message(code, spec.memory_mb, stderr_tail))


def decide_start_failure(error: rt.RuntimeFailure) -> Outcome:
    """The outcome of a container that the engine refused to create or to start."""
    match error:
        case rt.InvalidReference():
            text = f"The image's name isn't valid: {error}. Write it as NAME, NAME:TAG or NAME@DIGEST."
            return Outcome("failed", "image_not_found", error_msg=text)
        case rt.CommandRefused():
            return Outcome("failed", "invalid_command", error_msg=_command_message(str(error)))
        case _:
            advice = "Lower resources.cpus." if _FEWER_CORES in str(error) else "Ask the operator if it stays so."
            text = f"The container engine refused the container: {error}. {advice}"
            return Outcome("failed", "engine_error", error_msg=text)


def decide_pull_failure(error: rt.RuntimeFailure, *, image: str) -> Outcome:
    """The outcome of an image that couldn't be had."""
    match error:
        case rt.InvalidReference():
            return decide_start_failure(error)
        case rt.ImageNotFound():
            text = (
                f"The image {image} was not found: {error}. Check its name and tag; a private one needs the "
                "engine to be logged in to its registry."
            )
            return Outcome("failed", "image_not_found", error_msg=text)
        case _:
            text = f"The image {image} could not be pulled: {error}. Check that its registry is reachable."
            return Outcome("failed", "image_pull_failed", error_msg=text)


def _timeout_message(limit: timedelta) -> str:
    seconds = int(limit.total_seconds())
    return f"The run was stopped at its time limit of {seconds} s. Raise timeoutSeconds, or make the work smaller."


def _memory_message(memory_mb: int) -> str:
    return (
        f"The run was killed because it used more than its {memory_mb} MB of memory. "
        "Raise resources.memoryMb, or make it use less."
    )


def _command_message(error: str) -> str:
    return f"The command could not be started: {error}. Check command, args and entrypoint against the image."


def _exit_message(code: int, memory_mb: int, stderr_tail: str) -> str:
    text = f"The command ended with exit code {code}{_name_signal(code)}"
    if code == SIGNAL_EXIT + Signals.SIGKILL:
        # The engine doesn't see it when memory runs out in the first moments of a run.
        text = f"{text}; if nobody sent that signal, {memory_mb} MB of memory were too little"
    last_words = _last_words(stderr_tail)
    return (
        f"{text}. Its last words on stderr: {last_words}" if last_words else f"{text}. It wrote nothing on stderr."
    )


def _name_signal(code: int) -> str:
    """What a shell and an init make of a signal's number, put into words."""
    try:
        return f" (killed by {Signals(code - SIGNAL_EXIT).name})"
    except ValueError:
        return ""


def _last_words(stderr_tail: str) -> str:
    lines = [line.strip() for line in stderr_tail.splitlines() if line.strip()]
    return " / ".join(lines[-3:])[-LAST_WORDS_CHARACTERS:]
