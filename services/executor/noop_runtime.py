"""Runs nothing: every run ends at once with exit code 0. For benchmarks of the rest of the system."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from libs.common.clock import utc_now
from services.executor import runtime as rt


class NoopRuntime:
    """Keeps nothing but who is who, so that a run finds its own container."""

    def __init__(self) -> None:
        self._containers: dict[str, rt.ContainerState] = {}

    def describe(self) -> rt.EngineInfo:
        return rt.EngineInfo(engine_id="noop", host="noop", version="0", now=utc_now())

    def create(self, name: str, options: Mapping[str, Any]) -> str:
        now = utc_now()
        self._containers[name] = rt.ContainerState(
            container_id=name,
            status="exited",
            exit_code=0,
            oom_killed=False,
            error="",
            started_at=now,
            finished_at=now,
            image_id="noop",
            labels=options["Labels"],
        )
        return name

    def start(self, container_id: str) -> None:
        """Nothing is started."""

    def attach(
        self,
        container_id: str,  # noqa: ARG002
        *,
        on_open: rt.OnInterruptible,  # noqa: ARG002
    ) -> Iterator[tuple[rt.Stream, bytes]]:
        return iter(())

    def follow(
        self,
        container_id: str,  # noqa: ARG002
        *,
        on_open: rt.OnInterruptible,  # noqa: ARG002
    ) -> Iterator[tuple[rt.Stream, bytes]]:
        return iter(())

    def find_began(self) -> datetime | None:
        return None

    def find(self, name_or_id: str) -> rt.ContainerState | None:
        return self._containers.get(name_or_id)

    def kill(self, container_id: str, signal: str) -> bool:  # noqa: ARG002
        return False

    def remove(self, container_id: str) -> None:
        self._containers.pop(container_id, None)

    def pull(self, image: str, *, limit: timedelta, on_open: rt.OnInterruptible) -> None:
        """Every image is there."""

    def find_image(self, image: str) -> str | None:
        return image

    def list_containers(self, *, instance: str) -> Sequence[rt.ContainerSummary]:  # noqa: ARG002
        return []

    def ensure_network(self, network: rt.TaskNetwork) -> None:
        """There is no network."""

    def list_subnets(self, *, container: str, except_network: str) -> Sequence[str]:  # noqa: ARG002
        return []

    def run_helper(
        self,
        name: str,  # noqa: ARG002
        options: Mapping[str, Any],  # noqa: ARG002
        *,
        limit: timedelta,  # noqa: ARG002
    ) -> rt.HelperResult:
        return rt.HelperResult(exit_code=0, output="")

    def close(self) -> None:
        """Nothing is open."""
