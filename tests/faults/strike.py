"""What is done to a part at a failpoint, and the end of it."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults.crash_table import CUT, FREEZE, KILL, RESTART
from tests.faults.part import Part
from tests.faults.world import World

# Longer than a lease, as long as nobody takes over after a restart.
SECONDS = 45.0


def strike(world: World, parts: Sequence[Part], fault: str) -> None:
    """At its return the fault is there, and nobody is held at a failpoint any more."""
    for part in parts:
        if fault in (KILL, RESTART):
            part.kill()
        elif fault == FREEZE:
            part.freeze()
    if fault == CUT:
        for link in world.list_links(*(part.name for part in parts)):
            link.black_hole()
    world.let_go()
    if fault == RESTART:
        for part in parts:
            part.start()


def lasts(fault: str) -> bool:
    return fault in (FREEZE, CUT)


def end(world: World, parts: Sequence[Part], fault: str) -> None:
    for part in parts:
        if fault == FREEZE:
            part.thaw()
    if fault == CUT:
        for link in world.list_links(*(part.name for part in parts)):
            link.pass_all()
