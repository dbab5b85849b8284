"""Keeps the task network from the host, the control plane and metadata addresses (docs/security.md).

The rules are packet filter rules of the host, so they are set by a one-shot container in the host's network
namespace, which works wherever the engine does. `guard.sh` says what they are.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib import resources
from typing import Any

import structlog

from services.executor.runtime import LABEL_INSTANCE, Runtime, RuntimeFailure, TaskNetwork

log = structlog.get_logger()

HELPER_LIMIT = timedelta(seconds=60)


class GuardFailed(RuntimeFailure):
    """The rules aren't in place, so no task may reach any network."""


@dataclass(frozen=True, slots=True)
class GuardSettings:
    instance: str
    executor_id: str
    network: str
    image: str
    allow: Sequence[str]
    deny: Sequence[str]


def instance_tag(instance: str) -> str:
    """A short name that is the same for all executors of one system and differs between systems."""
    return f"trt-{hashlib.sha256(instance.encode()).hexdigest()[:8]}"


def task_network(settings: GuardSettings) -> TaskNetwork:
    """The network, with a bridge whose name the packet filter can match (15 characters at most)."""
    return TaskNetwork(
        name=settings.network,
        bridge=instance_tag(settings.instance),
        labels={LABEL_INSTANCE: settings.instance},
    )


def guard_name(settings: GuardSettings) -> str:
    """Of the helper container: each executor has its own, and finds what it left behind by it."""
    return f"{instance_tag(settings.instance)}-guard-{settings.executor_id}"


def guard_options(settings: GuardSettings, *, control_subnets: Sequence[str]) -> dict[str, Any]:
    """The create parameters of the helper container. Pure."""
    script = resources.files("services.executor").joinpath("guard.sh").read_text(encoding="utf-8")
    return {
        "Image": settings.image,
        "User": "0:0",
        "Entrypoint": ["/bin/sh", "-euc", script, "guard"],
        "Cmd": [],
        "Env": [
            f"BRIDGE={instance_tag(settings.instance)}",
            f"CHAIN={instance_tag(settings.instance).upper()}",
            f"ALLOW={' '.join(settings.allow)}",
            f"DENY={' '.join(settings.deny)}",
            f"CONTROL={' '.join(control_subnets)}",
        ],
        "Labels": {LABEL_INSTANCE: settings.instance},
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "NetworkMode": "host",
            "CapDrop": ["ALL"],
            # The older of the two packet filters (iptables-legacy) talks through a raw socket.
            "CapAdd": ["NET_ADMIN", "NET_RAW"],
            "SecurityOpt": ["no-new-privileges"],
            "ReadonlyRootfs": True,
            "Tmpfs": {"/run": "rw,size=1m"},
            "PidsLimit": 64,
            "Memory": 64 * 1024 * 1024,
        },
    }


class NetworkGuard:
    """Makes the network and its rules; doing it again is harmless."""

    def __init__(self, settings: GuardSettings) -> None:
        self._settings = settings

    def apply(self, runtime: Runtime) -> None:
        """GuardFailed, or what the engine raises, when the rules couldn't be set."""
        runtime.ensure_network(task_network(self._settings))
        subnets = runtime.list_subnets(container=socket.gethostname(), except_network=self._settings.network)
        options = guard_options(self._settings, control_subnets=subnets)
        result = runtime.run_helper(guard_name(self._settings), options, limit=HELPER_LIMIT)
        if result.exit_code != 0:
            raise GuardFailed(f"the network guard ended with {result.exit_code}: {result.output.strip()[-300:]}")
        log.info("network_guard_applied", control_subnets=list(subnets), said=result.output.strip()[-300:])
