"""A broker's queue that may lose, double, delay and mix up everything, and not confirm what it took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from uuid import UUID

from libs.common.publisher import Outgoing


class Fate(StrEnum):
    """What becomes of the messages of one publish."""

    TAKEN = "taken"
    TAKEN_TWICE = "taken twice"
    TAKEN_UNCONFIRMED = "taken, not confirmed"
    LOST = "confirmed, then lost"
    REFUSED = "not confirmed, lost"
    PUBLISHER_DIES_BEFORE = "the publisher dies before it"
    PUBLISHER_DIES_AFTER = "the publisher dies after it"


class PublisherDied(Exception):
    """The process that was publishing is no more."""


class Broker:
    """`fate` is that of the next publish; `meanwhile` happens before its caller hears of the confirms."""

    def __init__(self) -> None:
        self.queue: list[UUID] = []
        self.fate = Fate.TAKEN
        self.meanwhile: Callable[[], object] = lambda: None

    def answers(self, *, timeout_seconds: float) -> bool:
        return True

    def count(self, queue_name: str, *, timeout_seconds: float) -> int | None:
        return len(self.queue)

    def publish(self, outgoing: Sequence[Outgoing], *, timeout_seconds: float) -> set[str]:
        if self.fate == Fate.PUBLISHER_DIES_BEFORE:
            raise PublisherDied
        if self.fate not in (Fate.LOST, Fate.REFUSED):
            times = 2 if self.fate == Fate.TAKEN_TWICE else 1
            self.queue += [entry.message.run_id for entry in outgoing] * times
        self.meanwhile()
        if self.fate == Fate.PUBLISHER_DIES_AFTER:
            raise PublisherDied
        if self.fate in (Fate.TAKEN_UNCONFIRMED, Fate.REFUSED):
            return set()
        return {entry.id for entry in outgoing}
