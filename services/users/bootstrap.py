"""Makes the operator's admin when the system has none, as soon as the database answers."""

from __future__ import annotations

import threading
import time

import structlog

from libs.common.config import Secret
from libs.common.postgres import Pool, in_transaction
from services.users import accounts
from services.users.passwords import PasswordHasher
from services.users.roles import Role

log = structlog.get_logger()

_RETRY_SECONDS = 1.0


class AdminMissing(Exception):
    """The operator's admin has not been made yet: the database doesn't answer, or has not been migrated."""


class AdminBootstrap:
    """Runs once per process, in the background, until it has succeeded. Several at once make one admin."""

    def __init__(self, *, pool: Pool, passwords: PasswordHasher, email: str, password: Secret) -> None:
        self._pool = pool
        self._passwords = passwords
        self._email = email
        self._password = password
        self._done = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="admin-bootstrap", daemon=True).start()

    def require_done(self) -> None:
        """AdminMissing until an enabled admin is known to exist; for `/readyz`."""
        if not self._done.is_set():
            raise AdminMissing("no admin yet")

    def run_once(self) -> bool:
        """Whether the admin was made by this call."""
        was_made = False
        if not in_transaction(self._pool, accounts.has_enabled_admin):
            body = {"name": "Admin", "email": self._email, "password": self._password.reveal()}
            new = accounts.prepare(body, roles=list(Role), passwords=self._passwords)
            was_made = in_transaction(self._pool, lambda c: accounts.ensure_admin(c, new))
            if was_made:
                log.info("admin_created", user_id=str(new.id))
        self._done.set()
        return was_made

    def _run(self) -> None:
        while not self._done.is_set():
            try:
                self.run_once()
            except Exception as error:  # noqa: BLE001  The top of a thread: it goes on until it succeeds.
                log.warning("admin_bootstrap_waits", error=type(error).__name__)
                time.sleep(_RETRY_SECONDS)
