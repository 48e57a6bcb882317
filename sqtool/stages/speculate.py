"""speculate: how speculative decoding behaves with the candidate; four arms and more, the same traffic."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.spec import EvaluateSpec
from sqtool.errors import DataError, UsageError
from sqtool.spec import Spec
from sqtool.speculate.spec import CONTROL, FOUR, DraftSpec, SpeculateSpec
from sqtool.stages.contract import Estimate, Inputs, StageResult
from sqtool.stages.measuring import (
    ITEMS_PER_SECOND,
    START_SECONDS,
    engine_files,
    engine_fingerprint,
    engine_preflight,
    item_facts,
    task_files,
)
from sqtool.stages.sections import engine_section, evaluate_section

if TYPE_CHECKING:
    from sqtool.speculate.arms import Arm

REQUESTS_PER_SECOND = 12.0
"""Requests of the reference traffic that one arm answers a second on 2 CPU cores, 16 at once."""
PROBE_PASSES = 3
TASKS = "tasks"


def run(spec: SpeculateSpec, inputs: Inputs, out: Path) -> StageResult:
    """Measure all arms into `out/speculate.json`."""
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
        evaluate=evaluate_section(inputs),
        earlier=inputs.earlier,
    )
    return StageResult(summary)


def skip(spec: SpeculateSpec, inputs: Inputs) -> str:
    if not spec.enabled:
        return "speculate.enabled is false"
    # What is to block must be judged: there `preflight` refuses instead.
    return "" if spec.gate == "block" else _lacking(spec, inputs)[0]


def _lacking(spec: SpeculateSpec, inputs: Inputs) -> tuple[str, str]:
    """(why there is nothing to measure, unless the recipe asks for it; what would mend it), empty when there is."""
    kind = engine_section(inputs).kind
    if kind != "vllm" and "enabled" not in spec.model_fields_set and _served_here(spec):
        return f"speculation is measured with vLLM only, and engine.kind is {kind}", "Use `engine: {kind: vllm}`"
    has_draft = inputs.draft is not None or spec.model is not None
    has_draft |= all(spec.elsewhere(name) for name in ("speculative", "both"))
    if spec.method == "draft_model" and not has_draft and "method" not in spec.model_fields_set:
        return "the recipe has no draft model", "Give `draft:` in the recipe"
    return "", ""


def data_files(spec: SpeculateSpec, inputs: Inputs) -> list[Path]:
    """The traffic, the drafters that the section names itself, and what the engine's flags name."""
    files = [file for folder in _drafters(spec, inputs.root) for file in sorted(folder.glob("*")) if file.is_file()]
    files += engine_files(inputs)
    if spec.traffic == TASKS:
        return files + task_files(evaluate_section(inputs), inputs.root)
    path = inputs.root / spec.traffic
    if not path.is_file():
        raise DataError(
            path,
            "no such traffic file",
            field="speculate.traffic",
            remedy="Give a JSONL of requests, the word `tasks`, or set `speculate: {enabled: false}`.",
        )
    return [*files, path]


def _drafters(spec: SpeculateSpec, root: Path) -> list[Path]:
    arms = [arm.speculative for arm in spec.arms.values() if arm.url is None]
    named = [spec.model, *(drafts.model for drafts in arms if isinstance(drafts, DraftSpec))]
    return [root / Path(name).expanduser() for name in dict.fromkeys(named) if name is not None]


def counted(section: Spec) -> Spec:
    """Of the evaluation only what the speculating arms are asked: its drift and its controls are others' work."""
    if isinstance(section, EvaluateSpec):
        return section.model_copy(update={"drift": None, "control": None, "as_served": None})
    if isinstance(section, SpeculateSpec):
        return section.measuring
    return section


def fingerprint(spec: SpeculateSpec, inputs: Inputs) -> dict[str, Any]:
    """The engine that is started here, if any, and of each server that runs already what the recipe says that it is, as
    for `engine: {kind: openai}`."""
    served = {name: arm for name, arm in spec.arms.items() if arm.url is not None}
    servers = {name: {"endpoint": arm.url, "model": arm.model} for name, arm in served.items()}
    own = engine_fingerprint(inputs) if _served_here(spec) else {}
    return {**own, **({"servers": servers} if servers else {})}


def stale(summary: dict[str, Any], inputs: Inputs) -> str:
    """What was measured at a server holds for that server: one that says something else of itself is measured anew."""
    from sqtool.speculate.remote import changed

    why, silent = changed(summary.get("arms") or {})
    if silent and not why:
        inputs.progress.note(
            f"speculate: {', '.join(silent)} stand as measured before; their servers do not answer, so nobody knows "
            "whether they are the same (--force speculate measures again)"
        )
    return why


def _served_here(spec: SpeculateSpec) -> bool:
    """Whether any arm is a server that sqtool starts."""
    return spec.sweep is not None or not all(spec.elsewhere(name) for name in (*FOUR, *spec.arms))


def preflight(spec: SpeculateSpec, inputs: Inputs) -> Estimate:
    from sqtool.speculate.run import preflight as check

    lacking, remedy = _lacking(spec, inputs)
    if lacking and spec.gate == "block":
        raise UsageError(
            f"speculate.gate is block, and nothing would be judged: {lacking}",
            remedy=f"{remedy}, or set `speculate: {{gate: report}}` or `speculate: {{enabled: false}}`.",
        )
    kind = engine_section(inputs).kind
    if kind != "vllm" and _served_here(spec):
        raise UsageError(
            f"speculate.enabled is true, and engine.kind is {kind}: speculation is measured with vLLM only",
            remedy="Use `engine: {kind: vllm}`, name with `speculate.arms` where all arms are served, or set "
            "`speculate: {enabled: false}`.",
        )
    if _served_here(spec):
        engine_preflight(inputs)
    arms = check(
        spec,
        engine_section(inputs),
        baseline=inputs.model,
        candidate=inputs.candidate or inputs.model,
        draft=inputs.draft,
        root=inputs.root,
        evaluate=evaluate_section(inputs),
    )
    return _estimate(spec, arms, inputs)


def _estimate(spec: SpeculateSpec, arms: tuple[Arm, ...], inputs: Inputs) -> Estimate:
    servers = [arm.name for arm in arms if arm.name != CONTROL]
    started = [arm.name for arm in arms if arm.name != CONTROL and arm.url is None]
    quality = [arm.name for arm in arms if arm.name in FOUR and arm.speculates]
    facts = item_facts(evaluate_section(inputs), inputs.root)
    items = sum(len(fact.ids) for fact in facts.values())
    if spec.quality.items is not None:
        items = min(items, spec.quality.items)
    closed = spec.requests * (len(spec.max_concurrency) + spec.trace) * spec.repeats * len(arms)
    opened = sum(spec.requests / rate for rate in spec.request_rate) * spec.repeats * len(arms)
    others = len(servers) * spec.warmup
    if spec.cancellation is not None:
        others += len(servers) * spec.cancellation.requests * PROBE_PASSES
    others += spec.sampling.requests * spec.sampling.samples * sum(arm.name in (*FOUR, CONTROL) for arm in arms)
    seconds = (
        len(started) * START_SECONDS
        + (closed + others) / REQUESTS_PER_SECOND
        + opened
        + len(quality) * items / ITEMS_PER_SECOND
    )
    loads = [
        *(f"c{n}" for n in spec.max_concurrency),
        *(f"r{rate:g}" for rate in spec.request_rate),
        *(["trace"] if spec.trace else []),
    ]
    rule = (
        f"{len(started)} starts of {START_SECONDS:.0f} s, {REQUESTS_PER_SECOND:.0f} requests/s, "
        f"{len(quality)} times {items} task items at {ITEMS_PER_SECOND:.0f}/s (the reference pair on 2 cores)"
    )
    return Estimate(
        seconds,
        work=seconds,
        rule=rule,
        details={
            "arms": len(arms),
            "arm_names": [arm.name for arm in arms],
            "elsewhere": {arm.name: arm.url for arm in arms if arm.url is not None and arm.name != CONTROL},
            "loads": loads,
            "requests": spec.requests,
            "quality_items": items,
        },
    )
