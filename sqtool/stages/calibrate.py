"""calibrate: the calibration set and the coverage that the recipe asks for."""

from __future__ import annotations

from pathlib import Path

from calibrate.spec import CalibrateSpec
from sqtool.errors import DataError
from sqtool.stages.contract import Estimate, Inputs, StageResult
from sqtool.stages.sections import quantize_section

ROWS_PER_SECOND = 120.0
"""Conversations rendered and tokenized a second, seen on 2 cores."""
START_SECONDS = 4.0
"""Import of transformers and load of a tokenizer."""
PROBE_BYTES = 1 << 20
BYTES_PER_TOKEN = 4


def run(spec: CalibrateSpec, inputs: Inputs, out: Path) -> StageResult:
    """Build the set into `out`; CoverageError when it does not cover what the recipe asks for."""
    from calibrate.build import build

    summary = build(
        spec,
        model=inputs.model,
        seed=inputs.seed,
        out=out,
        progress=inputs.progress,
        root=inputs.root,
        trust_remote_code=inputs.trust_remote_code,
    )
    return StageResult(summary)


def skip(_spec: CalibrateSpec, inputs: Inputs) -> str:
    quantize = quantize_section(inputs)
    if quantize.checkpoint is not None:
        return "the recipe names a finished checkpoint"
    return "" if quantize.needs_calibration else "no method of the recipe looks at data"


def data_files(spec: CalibrateSpec, inputs: Inputs) -> list[Path]:
    from calibrate.build import source_paths

    files = source_paths(spec, model=inputs.model, root=inputs.root)
    for path in files:
        if not path.is_file():
            raise DataError(path, "no such calibration file", field="calibrate.sources")
    return files


def expected_tokens(spec: CalibrateSpec, inputs: Inputs) -> int:
    """Tokens that the set will have: the sources' mean line at 4 bytes a token, cut to max_seq_length."""
    lines = nbytes = 0
    for path in data_files(spec, inputs):
        with path.open("rb") as handle:
            head = handle.read(PROBE_BYTES)
        lines += head.count(b"\n")
        nbytes += len(head)
    mean = min(spec.max_seq_length, nbytes / max(1, lines) / BYTES_PER_TOKEN)
    return max(1, round(spec.num_calibration_samples * mean))


def preflight(spec: CalibrateSpec, _inputs: Inputs) -> Estimate:
    count = spec.num_calibration_samples
    rule = f"{START_SECONDS:.0f} s to start, {ROWS_PER_SECOND:.0f} conversations/s"
    return Estimate(START_SECONDS + count / ROWS_PER_SECOND, work=count, rule=rule, details={"samples": count})
