"""Named places in the code where the tests of crashes hold a process, to kill it, freeze it or cut it off there.

Off unless FAILPOINTS_DIR names a directory, and then it costs a call of an empty function. A file there that is
named after a failpoint arms it once: the process that comes by takes the file, by renaming it to
NAME@PID, which says that it is there, and goes on when that is gone (CONTRIBUTING.md, ADR 13).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from libs.common.config import exit_with_config_error

VARIABLE = "FAILPOINTS_DIR"
_LOOK_SECONDS = 0.01


class Failpoints:
    """Those of one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def reach(self, name: str) -> None:
        """Returns at once unless the failpoint is armed, else when whoever armed it says so."""
        taken = self._directory / f"{name}@{os.getpid()}"
        try:
            # Only one process, and one of its threads, can have taken it.
            (self._directory / name).rename(taken)
        except FileNotFoundError:
            return
        while taken.exists():
            time.sleep(_LOOK_SECONDS)


def _pass_by(_name: str) -> None:
    """Nothing is armed, nor ever will be."""


def choose_reach(environment: Mapping[str, str]) -> Callable[[str], None]:
    """What `reach` is in a process with this environment. Ends it when it is a production's."""
    directory = environment.get(VARIABLE)
    if not directory:
        return _pass_by
    if environment.get("ENVIRONMENT") == "production":
        exit_with_config_error(f"{VARIABLE} stops the process on purpose, for tests; it is refused in production")
    return Failpoints(Path(directory)).reach


# Bound once, at the import: what is off must be free, so nothing is looked up at each pass.
reach: Callable[[str], None] = choose_reach(os.environ)
