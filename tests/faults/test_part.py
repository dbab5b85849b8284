from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.part import Part
from tests.polling import wait_until

# Two processes that write as fast as they can, as gunicorn's master and worker would.
BUSY = """
import os, sys
name = "child" if os.fork() == 0 else "parent"
path = os.path.join(os.environ["FOLDER"], name)
while True:
    with open(path, "a") as file:
        file.write(".")
"""


@pytest.fixture
def part(tmp_path: Path) -> Iterator[Part]:
    (tmp_path / "busy.py").write_text(BUSY)
    environment = os.environ | {"FOLDER": str(tmp_path)}
    part = Part("busy", ["busy"], root=tmp_path, environment=environment, port=0, log=tmp_path / "log")
    part.start()
    wait_until(lambda: all(sizes(tmp_path)), what="both were busy")
    yield part
    part.kill()


def sizes(folder: Path) -> list[int]:
    return [path.stat().st_size if path.exists() else 0 for path in (folder / "parent", folder / "child")]


def test_nothing_of_a_frozen_part_runs_until_it_is_thawed(part: Part, tmp_path: Path):
    part.freeze()

    before = sizes(tmp_path)
    time.sleep(0.05)
    assert sizes(tmp_path) == before
    part.thaw()
    wait_until(lambda: all(map(int.__lt__, before, sizes(tmp_path))), what="both went on")


def test_nothing_of_a_killed_part_runs_any_more(part: Part, tmp_path: Path):
    part.kill()

    before = sizes(tmp_path)
    time.sleep(0.05)
    assert sizes(tmp_path) == before
    assert not part.is_running
