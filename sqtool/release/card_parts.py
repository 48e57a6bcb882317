"""Parts of the model card: front matter for the Hugging Face hub, coverage, limits, how to check the release."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqtool.report.coverage import DIMENSION_HEADERS, dimension_rows, dimensions
from sqtool.report.markdown import code, inline

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from sqtool.gate.verdict import MetricVerdict, Verdict

TASK = "text-generation"
ARM_HEADERS = ("arm", "load", "TTFT p50 ms", "TPOT p50 ms", "request p50 ms", "request p95 ms", "accepted length")
ARM_RULE = ("---", "---", *("---:",) * 5)
ARMS = (
    "The same traffic through four vLLM servers, on the machine that measured: the baseline; quantized only; the "
    "baseline with speculative decoding; both. Accepted length is tokens a step of the target."
)
BOUND = "The verdict holds for this engine, device class and these settings, on traffic like the items."


def front_matter(name: str, verdict: Verdict, *, base_model: str = "", method: str | None = None) -> str:
    """The card's YAML: base model, quantization, and the gated results in `model-index` form.

    huggingface_hub writes and checks it. `base_model` is a hub id, or empty: a hub resolves nothing else, and a local
    folder is named in the card's text instead.
    """
    from huggingface_hub import ModelCardData

    relation: dict[str, Any] = {"base_model_relation": "quantized"} if base_model else {}
    return ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag=TASK,
        base_model=base_model or None,
        tags=["vllm", "quantized", *([method] if method else []), "sqtool"],
        eval_results=[_result(metric) for metric in verdict.metrics if metric.gated],
        **relation,
    ).to_yaml()


def _result(metric: MetricVerdict) -> EvalResult:
    from huggingface_hub import EvalResult

    task, _, measure = metric.metric.rpartition(".")
    return EvalResult(
        task_type=TASK,
        dataset_type=task,
        dataset_name=task,
        dataset_args={"items": metric.items},
        metric_type=measure,
        metric_name=metric.metric,
        metric_value=metric.candidate,
        metric_args={
            "baseline": metric.baseline,
            "difference": metric.difference,
            "lower": metric.lower,
            "upper": metric.upper,
            "margin": metric.margin,
            "verdict": metric.outcome,
        },
    )


def coverage_section(path: Path) -> str:
    """What the calibration set covers, from coverage.json; empty when there is none to read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        head = f"**{inline(found['verdict'])}**: {int(found['samples'])} conversations, {int(found['tokens'])} tokens."
        kinds = ", ".join(f"{inline(kind)} {int(row['samples'])}" for kind, row in found["kinds"].items())
        rows = dimension_rows(dimensions(found))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    parts = [f"## Calibration\n\n{head} By kind: {kinds}."]
    if rows:
        lines = (DIMENSION_HEADERS, ("---", "---:", "---:", "---", "---"), *(map(inline, row) for row in rows))
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"Share of what the traffic and the test items have that the calibration set has too:\n\n{table}")
    return "\n\n".join(parts)


def arms_section(path: Path) -> str:
    """What quantization and speculation did to latency on the machine that measured, each alone and both, from
    speculate.json; empty when there is none to read."""
    try:
        arms = json.loads(path.read_text(encoding="utf-8"))["arms"]
        rows = [
            _arm_row(name, load, found)
            for name, arm in arms.items()
            # One load, or several by name.
            for load, found in (arm["loads"].items() if "loads" in arm else (("", arm),))
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    table = "\n".join(f"| {' | '.join(row)} |" for row in (ARM_HEADERS, ARM_RULE, *rows))
    return f"## The four arms\n\n{ARMS}\n\n{table}"


def _arm_row(name: str, load: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    latency, spoken = found.get("latency") or {}, found.get("speculation") or {}
    figures = [
        (latency.get(group) or {}).get(part)
        for group, part in (("ttft_ms", "p50"), ("tpot_ms", "p50"), ("e2e_ms", "p50"), ("e2e_ms", "p95"))
    ]
    figures.append(spoken.get("mean_acceptance_length"))
    shown = (f"{figure:.2f}" if isinstance(figure, (int, float)) else "-" for figure in figures)
    return inline(name.replace("_", " ")), inline(load) or "-", *shown


def limits_section(verdict: Verdict, base: str) -> str:
    """What the verdict does not say."""
    margins = ", ".join(f"{100 * m.margin:.2f} points on {inline(m.metric)}" for m in verdict.metrics if m.gated)
    lines = [
        BOUND,
        f"It bounds the loss (margins: {margins}); it does not say that nothing was lost.",
        "What no item asks is not measured: other languages, longer contexts, safety behaviour, other tools.",
    ]
    if base:
        lines.append(f"Everything that limits {code(base)} limits this checkpoint as well.")
    if verdict.stopped:
        lines.append("The evaluation ended early, when its sequence had decided; the sequence's own tests apply.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def checking_section(*, signed: bool) -> str:
    """How the reader checks what was downloaded."""
    if signed:
        command = "sqtool verify . --key PUBLIC_KEY"
        said = (
            "The release is signed (`model.sig`, OpenSSF model-signing) and its verdict is attested "
            "(`attestation.intoto.json`, in-toto). Get the public key from the publisher, not from here."
        )
    else:
        command = "sqtool verify ."
        said = (
            "**The release is not signed**: its hashes show damage, not who made it; whoever can change the files can "
            "change the hashes."
        )
    return f"## Checking\n\n{said}\n\n```bash\n{command}\n```"
