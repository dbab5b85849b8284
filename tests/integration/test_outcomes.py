from __future__ import annotations

import hashlib
from typing import Any

import pytest

from tests.integration.client import IMAGE, User, expect, shell
from tests.integration.conftest import Registry

pytestmark = pytest.mark.integration

RESULT_BYTES = 64 * 1024


def run_script(user: User, script: str, **fields: Any) -> dict[str, Any]:
    return user.api.wait_for(expect(user.api.post("/api/tasks/", shell(script, **fields)), 201)["id"])


def assert_failed(task: dict[str, Any], reason: str, exit_code: int | None = None) -> None:
    """Failed for that reason, with a message that says what to do about it."""
    assert (task["status"], task["reason"]) == ("failed", reason), task
    if exit_code is not None:
        assert task["exitCode"] == exit_code
    assert len(task["errorMsg"]) > 20
    assert "Traceback" not in task["errorMsg"]
    assert task["finishedAt"] is not None


VALUES = {
    "SPACES": "  two  spaces  ",
    "QUOTES": """both "double" and 'single' and `back`""",
    "EQUALS": "a=b==c",
    "NEWLINES": "first\nsecond\r\n\nfourth\n",
    "UNICODE": "ünï \u202e 🐳 \u0301",
    "DOLLARS": "$HOME ${HOME} $(id) \\n %s",
    "EMPTY": "",
    "CONTROL": "\x01\x07\x1b[31m\x7f\t",
    "LONG": "x" * 32_768,
}


def test_environment_values_arrive_byte_for_byte(user: User):
    task = user.api.create_task("sh", "-c", "env -0 | sort -z | od -An -v -tx1", environment=VALUES)

    user.api.wait_for(task["id"], "completed")
    printed = bytes.fromhex(user.api.read_logs(task["id"], stream="stdout").decode().replace("\n", ""))
    arrived = dict(entry.split(b"=", 1) for entry in printed.split(b"\0") if entry)
    for name, value in VALUES.items():
        assert arrived[name.encode()] == value.encode(), name


def test_arguments_arrive_as_they_are_and_no_shell_is_involved(user: User):
    arguments = [";", "&&", "$(id)", "`id`", "|", "a  b", "", "'", '"', "*", "~", "$HOME", "\n", "ü🐳", "-n", "\\"]

    task = user.api.create_task("printf", "[%s]", *arguments)

    user.api.wait_for(task["id"], "completed")
    expected = "".join(f"[{argument}]" for argument in arguments)
    assert user.api.read_logs(task["id"], stream="stdout").decode() == expected


def test_the_command_is_one_word_too(user: User):
    assert_failed(user.api.run("echo hello; id"), "invalid_command")


def test_the_entrypoint_replaces_the_images(user: User):
    task = user.api.run("b", "c", entrypoint=["echo", "a"])

    assert task["result"] == "a b c\n"


def test_of_100_kb_of_output_the_result_is_the_end_and_the_logs_are_all(user: User):
    script = "i=0; while [ $i -lt 10240 ]; do printf '%09d\\n' $i; i=$((i+1)); done"

    task = run_script(user, script)

    expected = "".join(f"{number:09d}\n" for number in range(10240)).encode()
    assert user.api.read_logs(task["id"], stream="stdout") == expected
    assert task["result"].encode() == expected[-RESULT_BYTES:]
    assert user.api.read_logs(task["id"], tail=2) == expected[-20:]


def test_binary_output_arrives_byte_for_byte(user: User):
    octal = "".join(f"\\{number:03o}" for number in range(256))

    task = run_script(user, f"i=0; while [ $i -lt 40 ]; do printf '{octal}'; i=$((i+1)); done")

    printed = user.api.read_logs(task["id"], stream="stdout")
    assert hashlib.sha256(printed).hexdigest() == hashlib.sha256(bytes(range(256)) * 40).hexdigest()
    assert isinstance(task["result"], str)


def test_containers_that_live_milliseconds_lose_nothing(user: User):
    created = [user.api.create_task("echo", f"gone in a moment {number}")["id"] for number in range(8)]

    for number, task_id in enumerate(created):
        task = user.api.wait_for(task_id, "completed")
        assert task["result"] == f"gone in a moment {number}\n"
        assert user.api.read_logs(task_id) == f"gone in a moment {number}\n".encode()


def test_exit_3_is_exit_nonzero(user: User):
    task = run_script(user, "echo 'the disk is on fire' >&2; exit 3")

    assert_failed(task, "exit_nonzero", 3)
    assert "3" in task["errorMsg"]
    assert "the disk is on fire" in task["errorMsg"]


def test_a_command_that_is_not_in_the_image_is_invalid_command(user: User):
    task = user.api.run("/no/such/command")

    assert_failed(task, "invalid_command")
    assert "command" in task["errorMsg"]


def test_a_directory_as_command_is_invalid_command(user: User):
    assert_failed(user.api.run("/tmp"), "invalid_command")  # noqa: S108  In the container.


def test_a_run_that_takes_too_much_memory_is_oom_killed(user: User):
    # The engine misses what happens in the first moments of a container.
    task = user.api.run("sh", "-c", "sleep 0.5; exec tail /dev/zero", resources={"memoryMb": 16})

    assert_failed(task, "oom_killed", 137)
    assert "memoryMb" in task["errorMsg"]


def test_137_without_memory_trouble_is_exit_nonzero(user: User):
    assert_failed(run_script(user, "kill -9 $$"), "exit_nonzero", 137)


def test_a_run_over_its_time_limit_is_a_timeout(user: User):
    task = user.api.run("sleep", "600", timeoutSeconds=1, stopGraceSeconds=0)

    assert_failed(task, "timeout")
    assert "timeoutSeconds" in task["errorMsg"]


def test_output_before_a_timeout_is_kept(user: User):
    task = run_script(user, "echo so far; sleep 600", timeoutSeconds=1, stopGraceSeconds=0)

    assert_failed(task, "timeout")
    assert task["result"] == "so far\n"


def test_an_image_that_its_registry_does_not_have_is_image_not_found(user: User, registry: Registry):
    task = user.api.run("true", image=f"{registry.address}/no-such-image:1")

    assert_failed(task, "image_not_found")
    assert "no-such-image" in task["errorMsg"]


def test_a_tag_that_its_registry_does_not_have_is_image_not_found(user: User, registry: Registry):
    repository = registry.push_test_image().rpartition(":")[0]

    assert_failed(user.api.run("true", image=f"{repository}:other"), "image_not_found")


def test_a_registry_that_cannot_be_reached_is_image_pull_failed(user: User):
    task = user.api.run("true", image="127.0.0.1:1/image:1")

    assert_failed(task, "image_pull_failed")
    assert "127.0.0.1:1/image:1" in task["errorMsg"]


def test_a_missing_image_is_pulled_and_its_digest_is_kept(user: User, registry: Registry):
    image = registry.push_test_image()

    task = user.api.run("echo", "pulled", image=image)

    assert task["result"] == "pulled\n"
    assert "sha256:" in user.api.list_runs(task["id"])[0]["imageDigest"]
    assert task["image"] == image


def test_processes_are_limited(user: User):
    script = "i=0; while [ $i -lt 40 ]; do sleep 5 & i=$((i+1)); done; wait"

    task = run_script(user, script, resources={"pids": 16}, timeoutSeconds=20)

    assert (task["status"], task["reason"]) == ("failed", "exit_nonzero"), task


def test_the_image_is_the_test_image():
    assert IMAGE == "busybox:latest"
