from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from libs.common.failpoints import Failpoints, choose_reach
from tests.polling import wait_until


def test_a_process_that_passes_an_armed_failpoint_says_so_and_waits_until_it_is_let_go(tmp_path: Path):
    (tmp_path / "half_way").touch()
    passing = threading.Thread(target=Failpoints(tmp_path).reach, args=("half_way",))

    passing.start()

    taken = tmp_path / f"half_way@{os.getpid()}"
    wait_until(taken.exists, what="the failpoint was taken")
    assert passing.is_alive()
    assert not (tmp_path / "half_way").exists()
    taken.unlink()
    passing.join(5.0)
    assert not passing.is_alive()


def test_a_failpoint_holds_one_passer_and_others_pass_by(tmp_path: Path):
    failpoints = Failpoints(tmp_path)
    (tmp_path / "half_way").touch()
    passing = [threading.Thread(target=failpoints.reach, args=("half_way",)) for _ in range(4)]

    for each in passing:
        each.start()

    wait_until(lambda: sum(each.is_alive() for each in passing) == 1, what="all but one had passed")
    (tmp_path / f"half_way@{os.getpid()}").unlink()
    for each in passing:
        each.join(5.0)


def test_what_is_not_armed_is_passed_at_once(tmp_path: Path):
    (tmp_path / "elsewhere").touch()

    Failpoints(tmp_path).reach("half_way")

    assert [each.name for each in tmp_path.iterdir()] == ["elsewhere"]


def test_without_the_variable_nothing_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "half_way").touch()

    choose_reach({})("half_way")
    choose_reach({"FAILPOINTS_DIR": ""})("half_way")

    assert (tmp_path / "half_way").exists()


def test_a_production_refuses_to_start_with_failpoints(tmp_path: Path):
    ended = subprocess.run(
        [sys.executable, "-c", "import libs.common.failpoints"],
        env=os.environ | {"FAILPOINTS_DIR": str(tmp_path), "ENVIRONMENT": "production"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 3
    assert "FAILPOINTS_DIR" in ended.stderr
    assert "Traceback" not in ended.stderr
