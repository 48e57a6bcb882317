"""quantize: the candidate checkpoint, or nothing when the recipe names a finished one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calibrate.spec import CalibrateSpec
from quantize.spec import QuantizeSpec
from sqtool.stages.calibrate import expected_tokens
from sqtool.stages.contract import Estimate, Inputs, StageResult


def run(spec: QuantizeSpec, inputs: Inputs, out: Path) -> StageResult:
    """Quantize into `out/checkpoint`."""
    from quantize.run import quantize

    summary = quantize(
        spec,
        model=inputs.model,
        calibration=inputs.folders.get("calibrate"),
        seed=inputs.seed,
        out=out,
        progress=inputs.progress,
        trust_remote_code=inputs.trust_remote_code,
    )
    return StageResult(summary)


def skip(spec: QuantizeSpec, _inputs: Inputs) -> str:
    return "the recipe names a finished checkpoint" if spec.checkpoint is not None else ""


def preflight(spec: QuantizeSpec, inputs: Inputs) -> Estimate:
    """Matches layers and group sizes against the model, so that a wrong pattern fails before anything runs."""
    from quantize.plan import plan

    samples = inputs.sections["calibrate"]
    assert isinstance(samples, CalibrateSpec)
    tokens = expected_tokens(samples, inputs) if spec.needs_calibration else None
    planned = plan(spec, model=inputs.model, tokens=tokens)
    shown = ("bytes_before", "bytes_after", "bits_per_weight", "layers_quantized", "simulated")
    details: dict[str, Any] = {key: planned[key] for key in shown if key in planned}
    details["bytes"] = planned.get("bytes_after", 0)
    return Estimate(
        planned["seconds"], work=max(1.0, planned["seconds"]), rule=planned.get("seconds_rule", ""), details=details
    )
