"""Cells of a table, one after another or a few at once, within a time and with what is finished kept.

    box = TimeBox(out / "methods.json", budget=540)
    box.run({"awq": lambda: {...}, ...}, workers=4)
    box.left_out      # names that were not begun

A cell is a function that returns a JSON-able dict. Each result is on disk before the next cell begins, so that a
killed run loses the cells in progress and nothing else; a cell whose result is there is not run again. When `budget`
seconds are over no further cell begins.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sqtool.errors import DataError, SqtoolError
from sqtool.files import read_json, write_json

Cell = Callable[[], dict[str, Any]]
PACKAGES = ("torch", "transformers", "llmcompressor", "compressed-tensors")
LONGEST_REASON = 300
FAILURES = (SqtoolError, RuntimeError, ValueError, TypeError, KeyError, OSError, subprocess.SubprocessError)


class TimeBox:
    """Results by cell name in the JSON file `path`, and the seconds that are left."""

    def __init__(self, path: Path, budget: float, facts: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.began = time.monotonic()
        self.budget = budget
        self.left_out: list[str] = []
        self.cells: dict[str, Any] = {}
        self.facts = {**machine(), **(facts or {})}
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            try:
                self.cells = dict(read_json(path)["cells"])
            except (DataError, KeyError, TypeError):
                note(f"{path} is no earlier result: begun anew")

    @property
    def spent(self) -> float:
        """Seconds since the box was opened."""
        return time.monotonic() - self.began

    def run(self, cells: Mapping[str, Cell], workers: int = 1) -> None:
        """Run the cells that have no result yet, at most `workers` at once, in the order given."""
        todo = {name: cell for name, cell in cells.items() if "error" in self.cells.get(name, {"error": ""})}
        for name in cells:
            if name not in todo:
                note(f"{name}: kept from an earlier run")
        if workers <= 1:
            # In this thread: OpenMP gives every other one a team of its own, and two teams fight over the cores.
            for name, cell in todo.items():
                self._one(name, cell)
            return
        with ThreadPoolExecutor(max_workers=workers) as pool:
            for future in [pool.submit(self._one, name, cell) for name, cell in todo.items()]:
                future.result()

    def _one(self, name: str, cell: Cell) -> None:
        if self.spent >= self.budget:
            self.left_out.append(name)
            return
        start = time.monotonic()
        try:
            result = cell()
        except FAILURES as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            result = {"error": lines[0][:LONGEST_REASON], "detail": "\n".join(lines[1:])[:4000]}
        result["cell_seconds"] = round(time.monotonic() - start, 1)
        self.keep(name, result)
        note(f"{name}: {result.get('error') or 'done'} ({result['cell_seconds']} s, {self.spent:.0f} s in all)")

    def keep(self, name: str, result: dict[str, Any]) -> None:
        """Put one result on disk."""
        with self._lock:
            self.cells[name] = result
            write_json(self.path, {**self.facts, "cells": self.cells, "left_out": self.left_out})

    def close(self) -> None:
        """Write the file once more, with what was left out, and say that."""
        write_json(self.path, {**self.facts, "cells": self.cells, "left_out": self.left_out})
        if self.left_out:
            print(f"\nLeft out, the {self.budget:.0f} s were over: {', '.join(self.left_out)}")


def note(text: str) -> None:
    """A line of progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """What the figures hold for: date, device, versions."""
    import datetime

    from evals.engine_env import device_name
    from sqtool.stages.runtime import has_gpu

    found: dict[str, Any] = {"date": str(datetime.datetime.now(datetime.UTC).date())}
    found["device"] = device_name("cuda" if has_gpu() else "cpu")
    found["versions"] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found["versions"][name] = version(name)
        except PackageNotFoundError:
            found["versions"][name] = "absent"
    return found


def heading(facts: Mapping[str, Any], command: str) -> str:
    """The line above a table: when, where, by what."""
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return f"{facts['date']}, {facts['device']}, `{command}`; {versions}\n"


def markdown(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def shown(value: float | None, digits: int = 2, scale: float = 1.0) -> str:
    """A figure for a table; `-` for none."""
    return "-" if value is None else f"{value * scale:.{digits}f}"
