"""approve: speculation's own verdict. It blocks nothing unless the recipe says `speculate: {gate: block}`.

A stage of its own, as the gate is beside the evaluation: a margin or a rule that changes is judged again in seconds,
and no server starts for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqtool.errors import RegressedError
from sqtool.files import read_json
from sqtool.runfolder import read_result
from sqtool.speculate.spec import SpeculateSpec
from sqtool.stages.baseline import RECORDS
from sqtool.stages.contract import Estimate, Inputs, StageResult
from sqtool.stages.gate import VERDICT
from sqtool.stages.sections import gate_section

SPECULATE = "speculate.json"


def run(spec: SpeculateSpec, inputs: Inputs, out: Path) -> StageResult:
    """Judge speculation on the records that are there and write `out/speculation_verdict.json`."""
    from sqtool.stages.speculation import Sides, judge_speculation

    folders = inputs.folders
    verdict = read_json(folders["gate"] / VERDICT)
    control = folders.get("control")
    result = judge_speculation(
        folders["speculate"],
        read_json(folders["speculate"] / SPECULATE),
        gate_section(inputs),
        Sides(
            folders["baseline"] / RECORDS,
            folders["evaluate"] / RECORDS,
            None if control is None else control / RECORDS,
            {"baseline": _engine(folders["baseline"]), "quantized": _engine(folders["evaluate"])},
        ),
        gate=spec.gate,
        rules=spec.rules,
        some_items=spec.quality.items is not None,
        ended_early=[str(part["task"]) for part in verdict.get("stopped", ())],
        verdict=verdict,
        out=out,
    )
    summary = {name: result[name] for name in ("approved", "gate", "method", "speculative_config", "reasons", "rules")}
    arms = {name: arm["approved"] for name, arm in result["arms"].items()}
    return StageResult({**summary, "arms": arms, "advice": result["advice"]["headline"]})


def _engine(folder: Path) -> dict[str, Any]:
    result = read_result(folder) or {}
    return dict((result.get("summary") or {}).get("engine") or {})


def skip(_spec: SpeculateSpec, inputs: Inputs) -> str:
    return "" if "speculate" in inputs.folders else "speculation was not measured"


def check(spec: SpeculateSpec, summary: dict[str, Any]) -> None:
    """`RegressedError` when speculation is not approved and the recipe lets that block."""
    if summary["approved"] or spec.gate != "block":
        return
    raise RegressedError(
        f"speculation is not approved: {'; '.join(summary['reasons'])}",
        remedy="`sqtool advise RUN` says what to do. To release the quantized checkpoint without speculation, "
        "set `speculate: {gate: report}`.",
    )


def preflight(_spec: SpeculateSpec, _inputs: Inputs) -> Estimate:
    return Estimate(2.0, rule="reads the records")
