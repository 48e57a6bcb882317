"""How long stages took on this machine, so that a plan can say how long they will take."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from sqtool.cores import usable_cores
from sqtool.stages.contract import Estimate

FILE = "timings.jsonl"
KEPT = 500
RECENT = 5


@dataclass(frozen=True)
class Guess:
    """Seconds that a stage will take, and where the figure comes from; None when nobody knows."""

    seconds: float | None
    source: str


def machine() -> str:
    """What timings depend on: host name, architecture and cores."""
    cores = usable_cores()
    return f"{platform.node()}/{platform.machine()}/{cores}"


class Timings:
    """The history in `<cache>/timings.jsonl`: one line a finished stage; broken lines are skipped."""

    def __init__(self, cache: Path) -> None:
        self._path = cache / FILE
        self._rows: list[dict[str, Any]] = []
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            lines = []
        for line in lines[-KEPT:]:
            try:
                row = json.loads(line)
                if row["machine"] == machine() and row["seconds"] >= 0 and row["work"] > 0:
                    self._rows.append(row)
            except (ValueError, KeyError, TypeError):
                continue

    def add(self, stage: str, work: float, seconds: float) -> None:
        """Remember one finished stage."""
        row = {"stage": stage, "machine": machine(), "work": work, "seconds": round(seconds, 3)}
        self._rows.append(row)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")

    def guess(self, stage: str, estimate: Estimate) -> Guess:
        """From runs with as much work, else the rule, else runs with other work scaled by it."""
        rows = [row for row in self._rows if row["stage"] == stage]
        same = [row["seconds"] for row in rows if abs(row["work"] - estimate.work) <= 0.02 * estimate.work]
        if same:
            times = "run" if len(same) == 1 else "runs"
            return Guess(median(same[-RECENT:]), f"{len(same)} earlier {times} here")
        if estimate.seconds is not None:
            return Guess(estimate.seconds, estimate.rule or "rule of thumb")
        if rows:
            scaled = [row["seconds"] * estimate.work / row["work"] for row in rows[-RECENT:]]
            return Guess(median(scaled), "earlier runs here, scaled by the work")
        return Guess(None, "never ran on this machine")
