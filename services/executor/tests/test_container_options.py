from __future__ import annotations

import uuid
from typing import Any

from services.executor.container_options import ContainerSettings, container_options
from services.executor.tests.builders import make_settings, make_spec


def options(settings: ContainerSettings | None = None, **changes: Any) -> dict[str, Any]:
    return container_options(make_spec(**changes), 3, settings or make_settings())


def test_the_command_and_its_arguments_are_a_list_and_no_shell_sees_them():
    argv = options(command="echo", args=["a b", ";", "$(x)", "&&"])["Cmd"]

    assert argv == ["echo", "a b", ";", "$(x)", "&&"]


def test_without_a_command_the_images_own_is_run():
    assert "Cmd" not in options(command=None, args=[])
    assert "Entrypoint" not in options()


def test_arguments_alone_go_to_the_images_entrypoint():
    assert options(command=None, args=["-v"])["Cmd"] == ["-v"]


def test_an_entrypoint_replaces_the_images():
    assert options(entrypoint=["/bin/sh", "-c"])["Entrypoint"] == ["/bin/sh", "-c"]


def test_environment_values_are_exact():
    value = 'a b="c"\n=ü'

    assert options(environment={"A": value})["Env"][-1] == f"A={value}"


def test_a_container_is_told_who_it_is():
    told = options(
        taskId=str(uuid.UUID(int=1)), runId=str(uuid.UUID(int=2)), number=3, scheduledAt="2026-01-31T08:15:00Z"
    )["Env"]

    assert told == [
        f"TASK_ID={uuid.UUID(int=1)}",
        f"RUN_ID={uuid.UUID(int=2)}",
        "TASK_ATTEMPT=3",
        "TASK_SCHEDULED_AT=2026-01-31T08:15:00.000000Z",
    ]


def test_a_task_that_was_made_before_these_names_were_taken_keeps_its_own():
    told = options(environment={"TASK_ID": "mine"})["Env"]

    assert [entry for entry in told if entry.startswith("TASK_ID=")] == ["TASK_ID=mine"]


def test_a_container_is_hardened():
    host = options(cpus=0.5, memoryMb=64, pids=10)["HostConfig"]

    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["Privileged"] is False
    assert host["Init"] is True
    assert host["IpcMode"] == "private"
    assert host["PidsLimit"] == 11
    assert host["Memory"] == host["MemorySwap"] == 64 * 1024 * 1024
    assert host["NanoCpus"] == 500_000_000
    assert host["RestartPolicy"] == {"Name": "no"}
    assert host["AutoRemove"] is False
    assert host["OomScoreAdj"] > 0
    assert {"Name": "core", "Soft": 0, "Hard": 0} in host["Ulimits"]


def test_nothing_of_the_host_is_mounted_or_published():
    host = options()["HostConfig"]

    assert not {"Binds", "Mounts", "VolumesFrom", "Devices", "PortBindings", "CapAdd", "UsernsMode"} & set(host)


def test_the_kept_output_is_bounded_and_binary():
    log = options()["HostConfig"]["LogConfig"]

    assert log["Type"] == "local"
    assert log["Config"]["max-size"] == "32m"


def test_egress_goes_through_the_task_network_and_none_nowhere():
    assert options(network="egress")["HostConfig"]["NetworkMode"] == "test-tasks"
    assert options(network="none")["HostConfig"]["NetworkMode"] == "none"


def test_labels_say_whose_container_it_is():
    spec = make_spec()

    labels = container_options(spec, 3, make_settings())["Labels"]

    assert labels == {
        "taskrunner.instance": "test",
        "taskrunner.task": str(spec.task_id),
        "taskrunner.run": str(spec.run_id),
        "taskrunner.epoch": "3",
        "taskrunner.executor": "executor-1",
        "taskrunner.boot": "boot-1",
    }


def test_the_operator_may_set_the_user_the_runtime_and_a_read_only_root():
    settings = make_settings(user="65534", runtime="runsc", read_only_root=True)

    made = options(settings)

    assert made["User"] == "65534"
    assert made["HostConfig"]["Runtime"] == "runsc"
    assert made["HostConfig"]["ReadonlyRootfs"] is True
    assert list(made["HostConfig"]["Tmpfs"]) == ["/tmp"]  # noqa: S108  Inside the container.
    assert "User" not in options()
