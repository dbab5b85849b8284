"""The disk guard: no new tasks before the database's disk is full, so that what was accepted gets its end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from libs.common.errors import Unavailable
from services.scheduler.metrics import STORAGE_FREE, STORAGE_REFUSES

log = structlog.get_logger()

# Room that comes and goes around the limit must not let every other task in.
_ROOM_AGAIN = 1.25
_REUSE_SECONDS = 1.0
_RETRY_AFTER_SECONDS = 60

_MIB = 1024 * 1024


class StorageGuard:
    """Looks at the file system of `path`, which is the database's. Without a path, or a limit, it lets all in.

    What can't be looked at is let in too: the database refuses what it can't write by itself.
    """

    def __init__(
        self,
        *,
        path: Path | None,
        min_free_mb: int,
        read_free: Callable[[Path], int] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path if min_free_mb else None
        self._min_free_bytes = min_free_mb * _MIB
        self._read_free = read_free or read_free_bytes
        self._monotonic = monotonic
        self._looked_at = float("-inf")
        self._free_bytes: int | None = None
        self._refuses = False

    def require_room(self) -> None:
        """Raise Unavailable when the disk is nearly full."""
        self._look()
        if self._refuses:
            raise Unavailable(
                "The system's disk is nearly full: no new tasks until there is room again. Running ones go on.",
                code="storage_full",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )

    def check(self) -> dict[str, float]:
        """Facts for `/readyz`. Raises when new tasks are refused, and when the disk can't be looked at."""
        if self._path is None:
            return {}
        self._look()
        if self._free_bytes is None:
            raise OSError("the database's disk can't be looked at")
        if self._refuses:
            raise OSError(f"only {self._free_bytes // _MIB} MiB are free: new tasks are refused")
        return {"freeMb": self._free_bytes // _MIB, "minFreeMb": self._min_free_bytes // _MIB}

    def _look(self) -> None:
        if self._path is None or self._monotonic() - self._looked_at < _REUSE_SECONDS:
            return
        self._looked_at = self._monotonic()
        try:
            self._free_bytes = self._read_free(self._path)
        except OSError as error:
            log.warning("storage_not_seen", error=str(error))
            self._free_bytes = None
            self._set_refuses(False)
            return
        STORAGE_FREE.set(self._free_bytes)
        self._set_refuses(
            decide_refusal(self._free_bytes, min_free_bytes=self._min_free_bytes, refuses=self._refuses)
        )

    def _set_refuses(self, refuses: bool) -> None:
        if refuses != self._refuses:
            # A person must look: nothing but room on the disk ends it.
            log.error("storage_full") if refuses else log.info("storage_has_room_again")
        self._refuses = refuses
        STORAGE_REFUSES.set(refuses)


def decide_refusal(free_bytes: int, *, min_free_bytes: int, refuses: bool) -> bool:
    """Below the limit yes; then until there is a quarter more than it."""
    return free_bytes < min_free_bytes * (_ROOM_AGAIN if refuses else 1)


def read_free_bytes(path: Path) -> int:
    """What a server that isn't root can still write. Needs no right to read what is below `path`."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
