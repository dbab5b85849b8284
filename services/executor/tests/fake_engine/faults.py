"""What may go wrong with one request to the fake engine: whether it is done, and what the client hears of it."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Done = Literal["first", "never", "late"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error that the engine answers."""

    status: int
    message: str


@dataclass(frozen=True, slots=True)
class Fault:
    """`done` says when the engine does what it was asked: before it answers, never, or late: when `until` is set,
    or the client has turned away.

    `answer` is what comes instead of the answer: nothing and the connection closes, nothing at all, or an error.
    None leaves the answer as it is, changed by `shows` (inspect) and `cut_after` (streams). `of` limits the fault
    to one container, by name or id.
    """

    done: Done = "first"
    answer: Literal["hang up", "silence"] | Refusal | None = None
    until: threading.Event | None = None
    shows: Mapping[str, Any] = field(default_factory=dict)
    cut_after: int | None = None
    cut: Literal["gently", "hard", "silently"] = "hard"
    of: str | None = None


REQUEST_LOST = Fault(done="never", answer="hang up")
REPLY_LOST = Fault(done="first", answer="hang up")
SILENCE = Fault(done="never", answer="silence")
SILENCE_THEN_DONE = Fault(done="late", answer="silence")
DONE_IN_SILENCE = Fault(done="first", answer="silence")


def done_when(event: threading.Event) -> Fault:
    """No answer, and the engine does it when the test says so."""
    return Fault(done="late", answer="silence", until=event)


def answers(status: int, message: str = "the engine's own trouble", *, done: Done = "never") -> Fault:
    return Fault(done=done, answer=Refusal(status, message))


def shows(**state: Any) -> Fault:
    """An inspect that tells something else than what is."""
    return Fault(shows=state)


def cut(after_bytes: int, how: Literal["gently", "hard", "silently"]) -> Fault:
    """A stream that ends after so many bytes: as if complete, broken off, or without another word."""
    return Fault(cut_after=after_bytes, cut=how)


class Script:
    """Which requests go wrong, and how: for each operation some faults, used once each in order, and then one for
    all others. `taken` counts the requests that went wrong; of the container named `spared` none does."""

    def __init__(self) -> None:
        self.taken: Counter[str] = Counter()
        self.spared: str | None = None
        self._lock = threading.Lock()
        self._next: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self._always: dict[str, Fault] = {}

    def once(self, operation: str, *faults: Fault) -> None:
        with self._lock:
            self._next[operation].extend(faults)

    def always(self, operation: str, fault: Fault, *, of: str | None = None) -> None:
        with self._lock:
            self._always[operation] = replace(fault, of=of)

    def clear(self) -> None:
        with self._lock:
            self._next.clear()
            self._always.clear()

    def take(self, operation: str, names: tuple[str, ...]) -> Fault | None:
        """The fault of this request; `names` are those of its container."""
        if self.spared in names:
            return None
        with self._lock:
            fault = self._always.get(operation)
            if fault is not None and fault.of not in (None, *names):
                fault = None
            if self._next[operation]:
                fault = self._next[operation].popleft()
            self.taken[operation] += fault is not None
            return fault
