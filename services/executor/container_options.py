"""The parameters of a task's container: a fixed list, from which a user chooses none of the host's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from libs.common.clock import format_time
from services.executor.runtime import (
    LABEL_BOOT,
    LABEL_EPOCH,
    LABEL_EXECUTOR,
    LABEL_INSTANCE,
    LABEL_RUN,
    LABEL_TASK,
)
from services.executor.spec import TaskSpec

MIB = 1024 * 1024
SHARED_MEMORY_BYTES = 16 * MIB
OPEN_FILES = 4096
OOM_SCORE = 500

# The engine's own copy of the output is for who comes later: an adopter reads it from the first byte. It must be
# the same bytes then, so not json-file, which replaces what isn't UTF-8. It is far larger than what is stored of
# a run, because a rotated file no longer has the first byte.
ENGINE_LOG_DRIVER = "local"
ENGINE_LOG_OPTIONS = {"max-size": "32m", "max-file": "1", "compress": "false"}


@dataclass(frozen=True, slots=True)
class ContainerSettings:
    """What the operator sets for all task containers. `user` empty means the image's own."""

    instance: str
    executor_id: str
    boot_id: str
    network: str
    runtime: str
    user: str
    read_only_root: bool


def container_options(spec: TaskSpec, epoch: int, settings: ContainerSettings) -> dict[str, Any]:
    """The body of the engine's create call, in the engine's own words. Pure."""
    options: dict[str, Any] = {
        "Image": spec.image,
        "Env": [f"{name}={value}" for name, value in (_own_variables(spec) | dict(spec.environment)).items()],
        "Labels": {
            LABEL_INSTANCE: settings.instance,
            LABEL_TASK: str(spec.task_id),
            LABEL_RUN: str(spec.run_id),
            LABEL_EPOCH: str(epoch),
            LABEL_EXECUTOR: settings.executor_id,
            LABEL_BOOT: settings.boot_id,
        },
        "Tty": False,
        "OpenStdin": False,
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        # An image's own health check would cost processor time that nobody reads.
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": _host_config(spec, settings),
    }
    command = [*([] if spec.command is None else [spec.command]), *spec.args]
    if command:
        options["Cmd"] = command
    if spec.entrypoint is not None:
        options["Entrypoint"] = list(spec.entrypoint)
    if settings.user:
        options["User"] = settings.user
    return options


def _own_variables(spec: TaskSpec) -> dict[str, str]:
    """What every container is told. The API refuses these names; a task from before keeps what it set itself."""
    return {
        "TASK_ID": str(spec.task_id),
        "RUN_ID": str(spec.run_id),
        "TASK_ATTEMPT": str(spec.number),
        **({"TASK_SCHEDULED_AT": format_time(spec.scheduled_at)} if spec.scheduled_at else {}),
    }


def _host_config(spec: TaskSpec, settings: ContainerSettings) -> dict[str, Any]:
    memory_bytes = spec.memory_mb * MIB
    host: dict[str, Any] = {
        "NetworkMode": "none" if spec.network == "none" else settings.network,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "Privileged": False,
        "Init": True,
        "IpcMode": "private",
        # The engine's init is one of them, and isn't the user's.
        "PidsLimit": spec.pids + 1,
        "Memory": memory_bytes,
        # Memory and swap together: the same number means no swap at all.
        "MemorySwap": memory_bytes,
        "NanoCpus": round(spec.cpus * 1_000_000_000),
        "ShmSize": min(SHARED_MEMORY_BYTES, memory_bytes),
        "Ulimits": [
            {"Name": "core", "Soft": 0, "Hard": 0},
            {"Name": "nofile", "Soft": OPEN_FILES, "Hard": OPEN_FILES},
        ],
        "OomScoreAdj": OOM_SCORE,
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": False,
        "PublishAllPorts": False,
        "ReadonlyRootfs": settings.read_only_root,
        "LogConfig": {"Type": ENGINE_LOG_DRIVER, "Config": dict(ENGINE_LOG_OPTIONS)},
        "Runtime": settings.runtime,
    }
    if settings.read_only_root:
        host["Tmpfs"] = {"/tmp": "rw,nosuid,nodev,size=64m"}  # noqa: S108  Inside the container.
    return host
