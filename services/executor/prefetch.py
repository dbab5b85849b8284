"""Pulls the images of tasks that are due soon, so that they don't wait for it."""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from datetime import timedelta

import structlog

from services.executor.runtime import Interrupt, Runtime, RuntimeFailure

log = structlog.get_logger()

# The scheduler names an image with every sync until its task is due.
LOOK_AGAIN_SECONDS = 60.0


class Prefetcher:
    """One thread with its own connection; a failure is left to the run itself to tell about."""

    def __init__(self, *, runtime: Runtime, limit: timedelta) -> None:
        self._runtime = runtime
        self._limit = limit
        self._wanted: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._looked_at: dict[str, float] = {}

    def want(self, images: Sequence[str]) -> None:
        now = time.monotonic()
        self._looked_at = {image: at for image, at in self._looked_at.items() if now - at < LOOK_AGAIN_SECONDS}
        for image in images:
            if image not in self._looked_at:
                self._looked_at[image] = now
                self._wanted.put(image)

    def run(self) -> None:
        while True:
            image = self._wanted.get()
            try:
                self.pull_if_missing(image)
            except RuntimeFailure as error:
                log.info("prefetch_failed", image=image, error=str(error))
            except Exception:
                log.exception("prefetch_broken", image=image)

    def pull_if_missing(self, image: str) -> None:
        if self._runtime.find_image(image) is not None:
            return
        log.info("prefetch_started", image=image)
        self._runtime.pull(image, limit=self._limit, on_open=_never_interrupted)


def _never_interrupted(_interrupt: Interrupt) -> None:
    """A prefetch runs to its end or its limit."""
