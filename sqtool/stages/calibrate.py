"""calibrate: the calibration set and the coverage that the recipe asks for."""

from __future__ import annotations

from pathlib import Path

from calibrate.spec import CalibrateSpec
from sqtool.errors import DataError
from sqtool.stages.contract import Estimate, Inputs, StageResult
from sqtool.stages.sections import quantize_section

ROWS_PER_SECOND = 120.0
"""Conversations rendered and tokenized a second, seen on 2 cores."""


def run(spec: CalibrateSpec, inputs: Inputs, out: Path) -> StageResult:
    """Build the set into `out`; CoverageError when it does not cover what the recipe asks for."""
    from calibrate.build import build

    summary = build(resolved(spec, inputs), model=inputs.model, seed=inputs.seed, out=out, progress=inputs.progress)
    return StageResult(summary)


def resolved(spec: CalibrateSpec, inputs: Inputs) -> CalibrateSpec:
    """The section with absolute paths; data are named relative to the project root."""
    sources = [s.model_copy(update={"path": inputs.root / s.path}) for s in spec.sources]
    return spec.model_copy(update={"sources": type(spec.sources)(sources)})


def skip(_spec: CalibrateSpec, inputs: Inputs) -> str:
    quantize = quantize_section(inputs)
    if quantize.checkpoint is not None:
        return "the recipe names a finished checkpoint"
    return "" if quantize.needs_calibration else "no method of the recipe looks at data"


def data_files(spec: CalibrateSpec, inputs: Inputs) -> list[Path]:
    files = [Path(source.path) for source in resolved(spec, inputs).sources]
    for path in files:
        if not path.is_file():
            raise DataError(path, "no such calibration file", field="calibrate.sources")
    return files


def preflight(spec: CalibrateSpec, _inputs: Inputs) -> Estimate:
    count = spec.num_samples
    seconds = 5.0 + count / ROWS_PER_SECOND
    return Estimate(seconds, work=count, rule=f"{ROWS_PER_SECOND:.0f} conversations/s", details={"samples": count})
