"""speculate: how speculative decoding behaves with the candidate; four servers, the same traffic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqtool.errors import DataError, UsageError
from sqtool.speculate.spec import SpeculateSpec
from sqtool.stages.contract import Estimate, Inputs, StageResult
from sqtool.stages.measuring import START_SECONDS, engine_fingerprint, engine_preflight
from sqtool.stages.sections import engine_section

ARMS = 4
REQUESTS_PER_SECOND = 5.0
"""Requests of the reference traffic that one arm answers a second on 2 CPU cores, 8 at once."""


def run(spec: SpeculateSpec, inputs: Inputs, out: Path) -> StageResult:
    """Measure the four arms into `out/speculate.json`."""
    from sqtool.speculate.run import speculate

    assert inputs.candidate is not None
    summary = speculate(
        spec,
        engine_section(inputs),
        baseline=inputs.model,
        candidate=inputs.candidate,
        draft=inputs.draft,
        root=inputs.root,
        out=out,
        progress=inputs.progress,
        seed=inputs.seed,
    )
    return StageResult(summary)


def skip(spec: SpeculateSpec, inputs: Inputs) -> str:
    if not spec.enabled:
        return "speculate.enabled is false"
    kind = engine_section(inputs).kind
    if kind != "vllm" and "enabled" not in spec.model_fields_set:
        return f"speculation is measured with vLLM only, and engine.kind is {kind}"
    if spec.method == "draft_model" and inputs.draft is None and "method" not in spec.model_fields_set:
        return "the recipe has no draft model"
    return ""


def data_files(spec: SpeculateSpec, inputs: Inputs) -> list[Path]:
    path = inputs.root / spec.traffic
    if not path.is_file():
        raise DataError(
            path,
            "no such traffic file",
            field="speculate.traffic",
            remedy="Give a JSONL of requests, or set `speculate: {enabled: false}`.",
        )
    return [path]


def fingerprint(_spec: SpeculateSpec, inputs: Inputs) -> dict[str, Any]:
    return engine_fingerprint(inputs)


def preflight(spec: SpeculateSpec, inputs: Inputs) -> Estimate:
    from sqtool.speculate.run import preflight as check

    kind = engine_section(inputs).kind
    if kind != "vllm":
        raise UsageError(
            f"speculate.enabled is true, and engine.kind is {kind}: speculation is measured with vLLM only",
            remedy="Use `engine: {kind: vllm}`, or `speculate: {enabled: false}`.",
        )
    engine_preflight(inputs)
    check(spec, target=inputs.model, draft=inputs.draft, root=inputs.root)
    requests = ARMS * (spec.requests + spec.warmup)
    seconds = ARMS * START_SECONDS + requests / REQUESTS_PER_SECOND
    rule = f"{ARMS} starts of {START_SECONDS:.0f} s, {REQUESTS_PER_SECOND:.0f} requests/s"
    return Estimate(seconds, work=requests, rule=rule, details={"arms": ARMS, "requests": spec.requests})
