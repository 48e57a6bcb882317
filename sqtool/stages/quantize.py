"""quantize: the candidate checkpoint, or nothing when the recipe names a finished one."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from calibrate.spec import CalibrateSpec
from quantize.spec import QuantizeSpec
from sqtool.stages.calibrate import expected_tokens
from sqtool.stages.contract import Estimate, Inputs, StageResult

SHOWN = (
    "bytes_before",
    "bytes_after",
    "bits_per_weight",
    "layers_quantized",
    "simulated",
    "methods",
    "mappings",
    "kernels",
    "runtime",
    "memory",
)
"""What a plan shows of `quantize.plan.plan`."""


def run(spec: QuantizeSpec, inputs: Inputs, out: Path) -> StageResult:
    """Quantize into `out/checkpoint`."""
    from quantize.run import quantize

    _experts(spec, inputs)
    summary = quantize(
        spec,
        model=inputs.model,
        calibration=inputs.folders.get("calibrate"),
        seed=inputs.seed,
        out=out,
        progress=inputs.progress,
        trust_remote_code=inputs.trust_remote_code,
    )
    gc.collect()  # the model refers to itself, and the stages after this one need its memory
    return StageResult(summary)


def _experts(spec: QuantizeSpec, inputs: Inputs) -> None:
    """Says which experts calibration hardly reached; CoverageError where that matters."""
    from calibrate.activations.stage import ACTIVATIONS
    from quantize.preflight.experts import check_experts

    folder = inputs.folders.get("calibrate")
    if folder is None:
        return
    samples = inputs.sections["calibrate"]
    assert isinstance(samples, CalibrateSpec)
    for warning in check_experts(
        folder / ACTIVATIONS,
        minimum=samples.activations.min_tokens_per_expert if samples.activations is not None else 0,
        calibrate_all_experts=spec.calibrate_all_experts,
    ):
        inputs.progress.note(f"quantize: {warning}")


def skip(spec: QuantizeSpec, _inputs: Inputs) -> str:
    return "the recipe names a finished checkpoint" if spec.checkpoint is not None else ""


def fingerprint(spec: QuantizeSpec, _inputs: Inputs) -> dict[str, str]:
    """Versions in the environment of another quantizer."""
    from quantize.backends.environments import QUANTIZERS, state

    if spec.backend not in QUANTIZERS:
        return {}
    return {f"{spec.backend}: {name}": number for name, number in state(spec.backend).versions.items()}


def preflight(spec: QuantizeSpec, inputs: Inputs) -> Estimate:
    """Everything that config and headers tell (`quantize.plan`), so that nothing of it fails after an hour."""
    import psutil

    from quantize.backends.environments import QUANTIZERS, python
    from quantize.plan import plan
    from sqtool.stages.runtime import has_gpu, runtime_of

    if spec.backend in QUANTIZERS:
        python(spec.backend)
    samples = inputs.sections["calibrate"]
    assert isinstance(samples, CalibrateSpec)
    tokens = expected_tokens(samples, inputs) if spec.needs_calibration else None
    planned = plan(
        spec,
        model=inputs.model,
        tokens=tokens,
        row_length=samples.max_seq_length,
        runtime=runtime_of(inputs),
        accelerator=has_gpu(),
        memory=psutil.virtual_memory().total,
    )
    details: dict[str, Any] = {key: planned[key] for key in SHOWN if key in planned}
    # A quantizer in an environment of its own writes its files first, then they are brought into our form.
    details["bytes"] = planned.get("bytes_after", 0) * (2 if spec.backend in QUANTIZERS else 1)
    return Estimate(
        planned["seconds"],
        work=max(1.0, planned["seconds"]),
        rule=planned.get("seconds_rule", ""),
        details=details,
        warnings=tuple(planned.get("warnings", ())),
    )
