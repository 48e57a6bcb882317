"""What `sqtool plan` says about the quantize stage: layers, mappings, kernels, memory; and its trial."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantize.preflight.trial import Trial
    from sqtool.pipeline import Plan

STAGE = "quantize"
WORDS = {
    "runs": "runs",
    "fallback": "falls back",
    "unpacked": "served unpacked",
    "fails": "does not run",
    "unknown": "not known",
}


def show_quantize(terminal: Any, details: dict[str, Any], trial: Trial | None) -> None:
    """The details of `quantize.plan.plan`, and the trial if there was one."""
    from sqtool.report.numbers import size, span

    terminal.say("Quantize")
    for method in details.get("methods", []):
        parts = [f"{pattern} {count}" for pattern, count in method.get("targets", {}).items()]
        left = [f"{pattern} {count}" for pattern, count in method.get("ignore", {}).items() if count]
        words = [f"{method['layers']} layers"]
        words += [f"targets: {', '.join(parts)}"] if parts else []
        words += [f"ignored: {', '.join(left)}"] if left else []
        if method.get("scheme"):
            words.insert(0, str(method["scheme"]))
        terminal.say(f"  {method['method']}: {'; '.join(words)}")
    for resolved in details.get("mappings", []):
        found = sum(1 for mapping in resolved["mappings"] if mapping["layers"])
        terminal.say(f"  {resolved['method']} mappings: {resolved['source']}, {found} found")
        for mapping in resolved["mappings"]:
            skipped = f", {mapping['skipped']} left out (shapes)" if mapping["skipped"] else ""
            to = ", ".join(mapping["balance"])
            terminal.say(f"    {mapping['smooth']} -> {to}: {mapping['layers']} decoder layers{skipped}")
    if details.get("runtime"):
        terminal.say(f"  served by {details['runtime']}")
    for served in details.get("kernels", []):
        why = f" ({served['reason']})" if served["reason"] else ""
        terminal.say(f"    {served['layers']} layers: {WORDS[served['status']]} {served['kernel']}{why}".rstrip())
    memory = details.get("memory")
    if memory:
        device = f", device {size(memory['device_bytes'])}" if memory["device_bytes"] else ""
        terminal.say(f"  memory: host about {size(memory['host_bytes'])}{device}")
    if trial is not None:
        terminal.say(f"  trial: about {span(trial.seconds)}, {trial.to_json()['rule']}")


def run_trial(terminal: Any, plan: Plan) -> tuple[Plan, Trial]:
    """Run the one-layer trial; the plan with its time in place of the estimate."""
    from calibrate.spec import CalibrateSpec
    from quantize.preflight.trial import trial
    from quantize.spec import QuantizeSpec
    from sqtool.pipeline.timing import Guess
    from sqtool.stages.calibrate import expected_tokens

    step = next(step for step in plan.steps if step.stage.name == STAGE)
    spec, samples = step.spec, step.inputs.sections["calibrate"]
    assert isinstance(spec, QuantizeSpec)
    assert isinstance(samples, CalibrateSpec)
    tokens = expected_tokens(samples, step.inputs) if spec.needs_calibration else 0
    ran = trial(
        spec,
        model=step.inputs.model,
        tokens=tokens,
        row_length=samples.max_seq_length,
        seed=step.inputs.seed,
        progress=terminal.progress,
    )
    guess = Guess(ran.seconds, str(ran.to_json()["rule"]))
    steps = tuple(replace(s, guess=guess) if s is step else s for s in plan.steps)
    return replace(plan, steps=steps), ran
