"""baseline: the bf16 model's answers and final states, made once for all recipes that ask the same."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.spec import EvaluateSpec
from sqtool.spec import Spec
from sqtool.stages import drifting, measuring
from sqtool.stages.contract import Estimate, Inputs, StageResult
from sqtool.stages.measuring import counted_of, engine_preflight, evaluation_estimate
from sqtool.stages.sections import engine_section

if TYPE_CHECKING:
    from evals.texts import Text

STATES = "states"
RECORDS = "records"


def run(spec: EvaluateSpec, inputs: Inputs, out: Path) -> StageResult:
    """Evaluate the baseline into `out`, then keep its states for drift in `out/states`."""
    from evals.drift import baseline_states, texts_of
    from evals.engine_check import probe
    from evals.records import remove_parts
    from evals.run import evaluate

    spec = drifting.possible(spec, inputs)

    @cache
    def texts() -> list[Text]:
        # The baseline's own answers stand in for expected ones, so its records must be there.
        return texts_of(spec, inputs.model, inputs.root, out / RECORDS)

    summary = evaluate(
        spec,
        engine_section(inputs).of_side("baseline"),
        model=inputs.model,
        root=inputs.root,
        out=out,
        progress=inputs.progress,
        seed=inputs.seed,
        resume_from=inputs.earlier,
        probe=probe(spec, texts, out, inputs.progress),
    )
    if spec.drift is not None:
        states = out / STATES
        states.mkdir()
        kept = baseline_states(spec, model=inputs.model, texts=texts(), out=states, progress=inputs.progress)
        summary = {**summary, "states": kept}
    remove_parts(out)
    return StageResult(summary)


def data_files(spec: EvaluateSpec, inputs: Inputs) -> list[Path]:
    return measuring.data_files(spec, inputs)


def counted(section: Spec) -> Spec:
    return counted_of("baseline", section)


def fingerprint(spec: EvaluateSpec, inputs: Inputs) -> dict[str, Any]:
    return measuring.fingerprint(spec, inputs)


def preflight(spec: EvaluateSpec, inputs: Inputs) -> Estimate:
    engine_preflight(inputs)
    estimate = evaluation_estimate(drifting.possible(spec, inputs), inputs)
    return replace(estimate, warnings=(*estimate.warnings, *drifting.left_out(spec, inputs)))
