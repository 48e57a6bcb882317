"""control: the baseline once more, so that the gate knows how steady the engine is; shared like the baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evals.spec import EvaluateSpec
from sqtool.spec import Spec
from sqtool.stages import measuring
from sqtool.stages.contract import Estimate, Inputs, StageResult
from sqtool.stages.measuring import ITEMS_PER_SECOND, START_SECONDS, counted_of, engine_preflight
from sqtool.stages.sections import engine_section


def run(spec: EvaluateSpec, inputs: Inputs, out: Path) -> StageResult:
    """Ask the baseline again into `out`."""
    from evals.control import control

    return StageResult(
        control(
            spec,
            engine_section(inputs).of_side("baseline"),
            model=inputs.model,
            baseline=inputs.folders["baseline"],
            root=inputs.root,
            out=out,
            progress=inputs.progress,
            seed=inputs.seed,
        )
    )


def skip(spec: EvaluateSpec, _inputs: Inputs) -> str:
    return "evaluate.control is null" if spec.control is None else ""


def data_files(spec: EvaluateSpec, inputs: Inputs) -> list[Path]:
    return measuring.data_files(spec, inputs)


def counted(section: Spec) -> Spec:
    return counted_of("baseline", section)


def fingerprint(spec: EvaluateSpec, inputs: Inputs) -> dict[str, Any]:
    return measuring.fingerprint(spec, inputs)


def preflight(spec: EvaluateSpec, inputs: Inputs) -> Estimate:
    engine_preflight(inputs)
    assert spec.control is not None
    seconds = START_SECONDS + spec.control.items / ITEMS_PER_SECOND
    return Estimate(seconds, work=spec.control.items, rule=f"{START_SECONDS:.0f} s to start vLLM, and a few items")
