"""The tables that the benchmarks print."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: the system's samples and the baseline's, taken in turn in this run."""

    name: str
    unit: str
    system: Sequence[float]
    baseline_name: str
    baseline: Sequence[float]

    @property
    def ratio(self) -> float:
        return statistics.median(self.system) / statistics.median(self.baseline)


def say(text: str) -> None:
    print(f"measuring {text}…", file=sys.stderr, flush=True)


def print_table(rows: Sequence[Row]) -> None:
    head = ("figure", "median", "baseline", "median", "ratio", "samples")
    lines = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for number, line in enumerate(lines):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        f"{statistics.median(row.system):.2f} {row.unit}",
        row.baseline_name,
        f"{statistics.median(row.baseline):.2f} {row.unit}",
        f"{row.ratio:.2f}",
        str(len(row.system)),
    )
