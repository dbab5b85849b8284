"""Code, cases and documents name the same failpoints."""

from __future__ import annotations

import re

from tests.faults.crash_table import TABLE
from tests.faults.rules import CHECKS
from tests.faults.world import ROOT

REACHED = re.compile(r'failpoints\.reach\("(\w+)"\)')


def read_tested_table() -> dict[str, list[str]]:
    """docs/task-model.md, The crash table as tested: crash point → its other cells."""
    text = (ROOT / "docs/task-model.md").read_text()
    section = text.partition("### The crash table as tested")[2].partition("\n#")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in rows[1:]}


def test_every_failpoint_in_the_code_is_hit_by_a_case_and_no_case_waits_for_another():
    in_code = [
        name
        for folder in ("libs", "services")
        for file in (ROOT / folder).rglob("*.py")
        if "tests" not in file.parts
        for name in REACHED.findall(file.read_text())
    ]

    assert sorted(in_code) == sorted({crash.failpoint for crash in TABLE.values()})


def test_the_documented_table_has_every_row_with_its_failpoint_and_its_bounds():
    documented = read_tested_table()

    assert set(documented) == {crash.row for crash in TABLE.values()} | {check.says for check in CHECKS.values()}
    for crash in TABLE.values():
        failpoint, *cells = documented[crash.row]
        assert failpoint == f"`{crash.failpoint}`"
        bounds = [float(cell.partition(" of ")[2]) for cell in cells if cell != "–"]
        assert bounds == list(crash.within.values())


def test_no_time_in_the_documented_table_is_beyond_its_bound():
    for row, (_, *cells) in read_tested_table().items():
        for seen, _, within in (cell.partition(" of ") for cell in cells if cell != "–"):
            assert float(seen) <= float(within), row
