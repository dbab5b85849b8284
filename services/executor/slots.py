"""The executor's slots: a thread each, that takes a message, claims its run and executes it."""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Protocol
from uuid import UUID

import structlog

from libs.common import failpoints
from libs.common.consumer import Delivery
from libs.common.messages import UnreadableMessage, decode_run_message
from services.executor.execution import Execution
from services.executor.held_run import HeldRun
from services.executor.metrics import ADOPTED, CLAIMS_REFUSED, DEAD_LETTERED
from services.executor.prefetch import Prefetcher
from services.executor.stopper import Stopper
from services.executor.sync import Adoption, Sync
from services.executor.sync_request import Grant
from services.executor.tools import Tools

log = structlog.get_logger()

# The refusal of a run that stays queued: its message is for another executor.
DRAINING = "draining"


class Messages(Protocol):
    """The part of the consumer that the slots use."""

    def set_capacity(self, capacity: int) -> None: ...

    def done(self, delivery: Delivery) -> None: ...

    def reject(self, delivery: Delivery) -> None: ...

    def give_back(self, delivery: Delivery) -> None: ...


class Slots:
    """Executes what is delivered, and what is adopted.

    An adopted run has a thread of its own, since it may come while all slots are busy; as long as it lasts, one
    slot fewer is offered to the broker.
    """

    def __init__(
        self,
        *,
        count: int,
        sync: Sync,
        messages: Messages,
        make_tools: Callable[[], Tools],
        may_take: Callable[[], bool],
    ) -> None:
        self._count = count
        self._sync = sync
        self._messages = messages
        self._make_tools = make_tools
        self._may_take = may_take
        self._answered: queue.SimpleQueue[tuple[Delivery, UUID, Grant]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._adopted = 0
        self.threads: Sequence[threading.Thread] = ()

    def start(self) -> None:
        self.threads = [
            threading.Thread(target=self._work, name=f"slot-{number}", daemon=True)
            for number in range(self._count)
        ]
        for thread in self.threads:
            thread.start()

    def deliver(self, delivery: Delivery) -> None:
        """Called by the consumer, which never has more in hand than there are free slots.

        Asks for the run at once: the slot that takes it may still be clearing its last container away.
        """
        try:
            message = decode_run_message(delivery.body)
        except UnreadableMessage:
            log.exception("message_unreadable", request_id=delivery.request_id)
            DEAD_LETTERED.inc()
            self._messages.reject(delivery)
            return
        failpoints.reach("run_delivered")
        run_id = message.run_id
        self._sync.claim(run_id, lambda grant: self._answered.put((delivery, run_id, grant)))

    def adopt(self, adoption: Adoption) -> None:
        ADOPTED.inc()
        with self._lock:
            self._adopted += 1
        self.balance()
        name = f"adopted-{adoption.run.spec.run_id}"
        threading.Thread(target=self._work_adopted, args=(adoption.run,), name=name, daemon=True).start()

    def balance(self) -> None:
        """Offer the broker as many slots as may be used now."""
        with self._lock:
            free = max(0, self._count - self._adopted)
            self._messages.set_capacity(free if self._may_take() else 0)

    def _work(self) -> None:
        tools = self._make_tools()
        while True:
            delivery, run_id, grant = self._answered.get()
            if grant.refusal == DRAINING:
                self._messages.give_back(delivery)
                continue
            # From here on the scheduler's lease guards the run, and the message has done its duty.
            delivery.taken = True
            if grant.run is None:
                log.info("claim_refused", run_id=str(run_id), reason=grant.refusal)
                CLAIMS_REFUSED.labels(grant.refusal).inc()
            else:
                # The slot is free when the container has ended; reporting and removing it goes beside.
                execution = Execution(grant.run, tools, on_ended=functools.partial(self._messages.done, delivery))
                self._execute(grant.run, execution.execute)
            self._messages.done(delivery)

    def _work_adopted(self, run: HeldRun) -> None:
        tools = self._make_tools()
        try:
            self._execute(run, Execution(run, tools).adopt)
        finally:
            tools.runtime.close()
            with self._lock:
                self._adopted -= 1
            self.balance()

    def _execute(self, run: HeldRun, steps: Callable[[], None]) -> None:
        try:
            steps()
        except Exception:
            # Whoever takes the run over when its lease has run out finds the container as it is.
            log.exception("run_broken", **run.log_ids)
            self._sync.let_go(run)


class Duties:
    """What the sync tells the executor, passed on to who does it."""

    def __init__(self, *, stopper: Stopper, prefetcher: Prefetcher) -> None:
        self._stopper = stopper
        self._prefetcher = prefetcher
        self.slots: Slots | None = None

    def adopt(self, adoption: Adoption) -> None:
        assert self.slots is not None  # noqa: S101  Set before the sync begins.
        self.slots.adopt(adoption)

    def stop_requested(self, run: HeldRun) -> None:
        log.info("stop_requested", **run.log_ids)
        self._stopper.wake()

    def prefetch(self, images: Sequence[str]) -> None:
        self._prefetcher.want(images)

    def replaced(self) -> None:
        assert self.slots is not None  # noqa: S101  As above.
        self.slots.balance()

    def drain_changed(self) -> None:
        assert self.slots is not None  # noqa: S101  As above.
        self.slots.balance()
