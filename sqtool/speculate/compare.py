"""Arms against one another: whose answers are the same, what was gained, whether the gains multiply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqtool.speculate.summary import ArmResult, counted, kind_speculation

SAME_WEIGHTS = {"speculative": "baseline", "both": "quantized"}
"""A speculating arm and the arm with the same target and no speculation: greedy answers should agree there."""
GAINS = {
    "ttft_p50": ("ttft_ms", "p50"),
    "tpot_p50": ("tpot_ms", "p50"),
    "e2e_p50": ("e2e_ms", "p50"),
    "e2e_p95": ("e2e_ms", "p95"),
}


def agreement(arm: ArmResult, other: ArmResult) -> dict[str, Any]:
    """Over requests that both arms answered: how many answers are identical (text and tool calls)."""
    theirs = {a.id: a.said for a in other.good}
    pairs = [(a.id, a.said == theirs[a.id]) for a in arm.good if a.id in theirs]
    same = sum(equal for _, equal in pairs)
    return {
        "with": other.name,
        "of": len(pairs),
        "identical": same,
        "share": same / len(pairs) if pairs else None,
        "different": [name for name, equal in pairs if not equal][:10],
    }


def agreements(arms: Mapping[str, ArmResult]) -> dict[str, list[dict[str, Any]]]:
    """For each arm: agreement with the baseline arm, and with the arm of the same weights that does not speculate."""
    result = {}
    for name, arm in arms.items():
        others = dict.fromkeys(o for o in ("baseline", SAME_WEIGHTS.get(name)) if o is not None and o != name)
        result[name] = [agreement(arm, arms[other]) for other in others if other in arms]
    return result


def interaction(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """For each measure, how many times better each arm is than the baseline, and whether `both` is the product.

    `ratio` = gain of both / (gain of quantization x gain of speculation): 1 when the two do not touch each other.
    """
    result: dict[str, Any] = {}
    for measure, (group, name) in GAINS.items():
        values = {arm: (summary["latency"][group] or {}).get(name) for arm, summary in summaries.items()}
        result[measure] = _gains({arm: 1 / value if value else None for arm, value in values.items()})
    rates = {arm: summary["output_tokens_per_s"] for arm, summary in summaries.items()}
    result["output_tokens_per_s"] = _gains(rates)
    return result


def _gains(better: Mapping[str, float | None]) -> dict[str, float | None]:
    """Gains over the baseline from values where more is better."""
    base = better.get("baseline")
    gain = {
        name: better[arm] / base if base and better.get(arm) else None  # type: ignore[operator]
        for name, arm in (("quantization", "quantized"), ("speculation", "speculative"), ("both", "both"))
    }
    quantization, speculation, both = gain["quantization"], gain["speculation"], gain["both"]
    product = quantization * speculation if quantization and speculation else None
    return {**gain, "product": product, "ratio": both / product if both and product else None}


def acceptance_change(arms: Mapping[str, ArmResult]) -> dict[str, Any] | None:
    """What quantizing the target did to acceptance: `both` minus `speculative`, overall, per kind, per position."""
    if "speculative" not in arms or "both" not in arms:
        return None
    full, quantized = arms["speculative"], arms["both"]
    kinds = sorted({a.kind for a in full.answers} & {a.kind for a in quantized.answers})
    return {
        "overall": _change(counted(full), counted(quantized)),
        "kinds": {kind: _change(kind_speculation(full, kind), kind_speculation(quantized, kind)) for kind in kinds},
    }


def _change(before: Any, after: Any) -> dict[str, Any] | None:
    if before is None or after is None or not before.drafts or not after.drafts:
        return None
    old, new = before.to_dict(), after.to_dict()
    return {
        "acceptance_rate": new["acceptance_rate"] - old["acceptance_rate"],
        "mean_acceptance_length": new["mean_acceptance_length"] - old["mean_acceptance_length"],
        "per_position_rate": [b - a for a, b in zip(old["per_position_rate"], new["per_position_rate"], strict=False)],
    }
