"""gunicorn's threaded worker, which refuses connections as soon as it is to stop."""

from __future__ import annotations

from gunicorn.workers.gthread import ThreadWorker


class Worker(ThreadWorker):  # type: ignore[misc]
    """Takes what has connected before the stop, then closes its listeners.

    gunicorn's own keeps them open until the last request has ended: who connects meanwhile is never answered, and
    can't know whether what was sent is being done. One that is refused goes to another replica, or waits.
    """

    def set_accept_enabled(self, enabled: bool) -> None:
        super().set_accept_enabled(enabled)
        if self.alive:
            return
        for listener in self.sockets:
            before = None
            while self.nr_conns != before:
                before = self.nr_conns
                self.accept(listener)
            listener.close()
