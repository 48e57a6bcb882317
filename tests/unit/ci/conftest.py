"""Runs that ended in every way, judged by the real gate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sqtool.files import read_json, write_json
from sqtool.gate.judge import judge
from sqtool.gate.spec import GateSpec
from tests.unit.report.conftest import Make, make_run

__all__ = ["make_run"]

Ended = Callable[..., Path]
EXIT_CODES = {"refused": 1, "inconclusive": 3, "failed": 4, "cancelled": 130, "running": None}
AFTER_GATE = ("speculate", "approve", "release")
STAGES = ("calibrate", "quantize", "baseline", "evaluate", "gate", *AFTER_GATE)
SECONDS = {"recall": {"seconds": 12.5, "n": 400}}


def kind_of(number: int) -> str:
    """400 items: 20 of a kind that is too rare to be judged, the rest halves of two kinds."""
    return "rare" if number >= 380 else "early" if number < 190 else "late"


@pytest.fixture
def ended(make_run: Make) -> Ended:
    """`ended(outcome, wrong, gate={...})`: as make_run, with exit code, task times, kinds and a gate section."""

    def make(outcome: str = "released", wrong: int = 0, *, gate: dict[str, Any] | None = None, **other: Any) -> Path:
        if outcome in ("refused", "inconclusive"):
            other.setdefault("drop", AFTER_GATE)
            other.setdefault("error", {"type": "RegressedError", "message": "it regressed", "remedy": "Look."})
        folder = make_run(outcome, wrong, **other)
        for side in ("baseline", "evaluate"):
            path = folder / side / "records/recall.jsonl"
            records = [json.loads(line) for line in path.read_text().splitlines()]
            for number, record in enumerate(records):
                record["kind"] = kind_of(number)
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
        verdict = judge(
            GateSpec.model_validate({"metrics": {"recall.exact_match": 0.02}, **(gate or {})}),
            folder / "baseline/records",
            folder / "evaluate/records",
        )
        (folder / "gate/verdict.json").write_text(verdict.to_json())
        state = read_json(folder / "run.json")
        state["exit_code"] = EXIT_CODES.get(outcome, 0)
        write_json(folder / "run.json", state)
        if (folder / "evaluate/result.json").is_file():
            result = read_json(folder / "evaluate/result.json")
            result["summary"]["tasks"] = SECONDS
            write_json(folder / "evaluate/result.json", result)
        return folder

    return make


def change_verdict(folder: Path, **values: Any) -> None:
    """Put further values into a run's verdict.json, as a later version of the gate would."""
    path = folder / "gate/verdict.json"
    write_json(path, {**read_json(path), **values})
