"""A release: one file in releases/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqtool.stages.contract import Inputs, StageResult
from tests.pipeline.fakes import FakeSpec, make


def run(spec: FakeSpec, inputs: Inputs, out: Path) -> StageResult:
    make.run(spec, inputs, out)
    place = inputs.root / "releases" / inputs.recipe["name"]
    place.parent.mkdir(exist_ok=True)
    place.write_text((out / "out-0.txt").read_text())
    return StageResult({"path": str(place.relative_to(inputs.root))})


def stale(summary: dict[str, Any], inputs: Inputs) -> str:
    return "" if (inputs.root / summary["path"]).is_file() else "the release is gone"
