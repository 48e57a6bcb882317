"""A gate whose verdict stands in its section."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqtool.errors import InconclusiveError, RegressedError
from sqtool.stages.contract import Inputs, StageResult
from tests.pipeline.fakes import FakeSpec, make


def run(spec: FakeSpec, inputs: Inputs, out: Path) -> StageResult:
    make.run(spec, inputs, out)
    return StageResult({"outcome": spec.outcome})


def check(spec: FakeSpec, summary: dict[str, Any]) -> None:
    if summary["outcome"] == "REGRESSED":
        raise RegressedError("recall.exact_match dropped 20 points")
    if summary["outcome"] == "INCONCLUSIVE":
        raise InconclusiveError("too few items")
