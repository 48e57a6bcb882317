"""speculate.json, verdict.json and speculation_verdict.json as the stages write them, with figures to choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BASE_MS = 400.0
TARGET = {"baseline": "baseline", "quantized": "quantized", "speculative": "baseline", "both": "quantized"}
GAIN_OF = {"quantized": "quantization", "speculative": "speculation", "both": "both"}
MEASURES = ("ttft_p50", "tpot_p50", "e2e_p50", "e2e_p95", "output_tokens_per_s")
RATES = [0.9, 0.75, 0.6, 0.5]
Interval = tuple[float, float, float]
"""(gain, low, high)."""


PHASES = {"missing": "vLLM reports no time per phase"}
PROBED = {
    "kv_usage_before": 0.0,
    "kv_usage_after": 0.0,
    "e2e_p50_before": 0.4,
    "e2e_p50_after": 0.41,
    "retries": {"retried": 4, "answered": 4, "same_answer": 4},
    "idle_after_s": 1.0,
    "kv_freed": True,
    "e2e_p50_ratio": 1.025,
}
STEPS = {
    "engine_steps": 700,
    "target_forward_passes": 1200,
    "forward_passes_saved": 2800,
    "share_saved": 0.7,
    "exact": True,
    "step_ms": {"value": 18.0, "ci": [17.5, 18.5]},
    "plain_step_ms": 15.0,
    "overhead_ms": {"value": 3.0, "ci": [2.5, 3.5]},
    "step_ratio": {"value": 1.2, "ci": [1.16, 1.24]},
    "verify_step_ms": PHASES,
    "draft_ms_per_token": PHASES,
    "verify_step_ms_bounds": [15.0, 18.0],
    "draft_ms_per_token_at_most": 0.75,
}
PLAIN_STEPS = {"engine_steps": 700, "target_forward_passes": 4000, "forward_passes_saved": 0, "exact": True}


def around(value: float, spread: float = 0.02) -> list[float]:
    return [value * (1 - spread), value * (1 + spread)]


def latency(e2e: float, first: float) -> dict[str, Any]:
    def group(middle: float) -> dict[str, Any]:
        values = {"p50": middle, "p90": 1.6 * middle, "p95": 1.8 * middle, "p99": 2.2 * middle}
        ci = {name: around(values[name]) for name in ("p50", "p95", "p99")}
        return {**values, "mean": 1.1 * middle, "n": 128, "ci": ci}

    return {
        "ttft_ms": group(first),
        "tpot_ms": group((e2e - first) / 30),
        "itl_ms": group((e2e - first) / 30),
        "e2e_ms": group(e2e),
    }


def speculation(rates: Sequence[float] = RATES, drafts: int = 1000) -> dict[str, Any]:
    accepted = sum(rates)
    rate = accepted / len(rates)
    return {
        "drafts": drafts,
        "draft_tokens": drafts * len(rates),
        "accepted_tokens": round(drafts * accepted),
        "acceptance_rate": rate,
        "mean_acceptance_length": 1 + accepted,
        "per_position_rate": list(rates),
        "ci": {
            "acceptance_rate": around(rate),
            "mean_acceptance_length": around(1 + accepted),
            "per_position_rate": [around(one) for one in rates],
        },
        "source": "metrics",
        "cross_check": {"agree": True},
    }


def at_load(
    gain: float, *, speculates: bool, first_share: float, rates: Sequence[float], failed: int = 0
) -> dict[str, Any]:
    e2e = BASE_MS / gain
    figures = latency(e2e, first_share * BASE_MS)
    spoken = speculation(rates) if speculates else None
    kind = {"requests": 64, "failures": 0, "latency": figures, "speculation": spoken, "accepted": {"n": 60, "of": 64}}
    return {
        "requests": 128,
        "failures": {"count": failed, "examples": [{"id": "x", "error": "HTTP 500"}] if failed else []},
        "seconds": 20 / gain,
        "output_tokens": 4000,
        "output_tokens_per_s": 200 * gain,
        "requests_per_s": 6.4 * gain,
        "latency": figures,
        "goodput": {"requests_per_s": 6.0 * gain, "share": 1.0, "ci": {"share": [0.97, 1.0], "requests_per_s": None}},
        "accepted": {"n": 120, "of": 128, "within_slo": 120},
        "cost": {
            "per_accepted_answer": 0.16 / gain,
            "ci": around(0.16 / gain),
            "unit": "device_seconds",
            "accepted": 120,
        },
        "steps": STEPS if speculates else PLAIN_STEPS,
        "speculation": spoken,
        "kinds": {"recall": kind, "lookup": kind},
    }


def report(
    gains: Mapping[str, Mapping[str, Interval]] | None = None,
    *,
    control: Mapping[str, Interval] | None = None,
    first_share: float = 0.2,
    rates: Sequence[float] = RATES,
    weights: tuple[float, float] = (2e9, 1e9),
    cache: float = 8e9,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`gains`: load -> arm -> (gain, low, high). The arms are the four; `extra` puts further ones beside them."""
    gains = gains or {"c16": {"quantized": (1.2, 1.15, 1.25), "speculative": (1.4, 1.3, 1.5), "both": (1.7, 1.6, 1.8)}}
    control = dict.fromkeys(gains, (1.0, 0.98, 1.02)) if control is None else control
    arms: dict[str, Any] = {}
    for arm, target in TARGET.items():
        speculates = arm in ("speculative", "both")
        arms[arm] = {
            "target": target,
            "model": "target" if target == "baseline" else "checkpoint",
            "speculates": speculates,
            "engine": {},
            "memory": {
                "weights_bytes": weights[target == "quantized"],
                "draft_bytes": 2e8 if speculates else 0,
                "kv_cache_bytes": cache,
                "kv_cache_tokens": 65536,
                "rss_peak_bytes": 11e9,
                "missing": {"device_peak_bytes": "no GPU here"},
            },
            "start_seconds": 31.0,
            "loads": {
                load: at_load(per.get(arm, (1.0,))[0], speculates=speculates, first_share=first_share, rates=rates)
                for load, per in gains.items()
            },
            "quality": {"recall.exact_match": 0.97} if speculates else None,
            "probe": {"cancelled": 4, "sent": 40, "running_after_s": [[0.5, 2.0], [1.0, 0.0]]} | PROBED,
        }
    arms["baseline_again"] = {
        **arms["baseline"],
        "loads": {load: at_load(1.0, speculates=False, first_share=first_share, rates=rates) for load in gains},
    }
    same = {"with": "baseline", "of": 128, "identical": 127, "share": 127 / 128, "different": ["recall-1"]}
    return {
        "schema": "sqtool.speculate/2",
        "method": "draft_model",
        "speculative_config": {"method": "draft_model", "model": "draft", "num_speculative_tokens": len(rates)},
        "seed": 0,
        "interleaved": False,
        "traffic": {
            "source": "traffic.jsonl",
            "sha256": "ab" * 32,
            "requests": 128,
            "warmup": 8,
            "kinds": {"recall": 64, "lookup": 64},
            "scored": 128,
        },
        "loads": list(gains),
        "arms": {**arms, **(extra or {})},
        "agreement": {
            "baseline": [],
            "quantized": [{**same, "identical": 110, "share": 110 / 128}],
            "speculative": [same],
            "both": [{**same, "identical": 110, "share": 110 / 128}, {**same, "with": "quantized"}],
            "baseline_again": [{**same, "identical": 126, "share": 126 / 128}],
        },
        "interaction": {load: {measure: _interaction(per) for measure in MEASURES} for load, per in gains.items()},
        "acceptance_change": {load: {"overall": _change(rates), "kinds": {"recall": _change(rates)}} for load in gains},
        "control": {
            load: {measure: {"gain": known[0], "ci": list(known[1:])} for measure in MEASURES}
            for load, known in control.items()
        },
        "sampling": None,
        "missing": [{"measure": "device_peak_bytes", "arm": "baseline", "load": None, "reason": "no GPU here"}],
    }


def _interaction(per: Mapping[str, Interval]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        GAIN_OF[arm]: {"gain": known[0], "ci": list(known[1:])} for arm, known in per.items() if arm in GAIN_OF
    }
    entry["others"] = {"baseline_again": {"gain": 1.0, "ci": [0.98, 1.02]}}
    if {"quantization", "speculation", "both"} <= set(entry):
        product = entry["quantization"]["gain"] * entry["speculation"]["gain"]
        ratio = entry["both"]["gain"] / product
        entry |= {"product": product, "ratio": {"value": ratio, "ci": around(ratio, 0.05)}}
    return entry


def _change(rates: Sequence[float]) -> dict[str, Any]:
    return {
        "acceptance_rate": {"value": -0.03, "ci": [-0.05, -0.01]},
        "mean_acceptance_length": {"value": -0.12, "ci": [-0.2, -0.04]},
        "per_position_rate": [{"value": -0.03, "ci": [-0.06, 0.0]} for _ in rates],
    }


def gate(outcome: str = "PASS", *, inconclusive: str = "refuse", lower: float = -0.005) -> dict[str, Any]:
    metric = {"metric": "recall.exact_match", "gated": True, "lower": lower, "margin": 0.02, "upper": 0.01}
    return {"outcome": outcome, "inconclusive": inconclusive, "metrics": [metric], "slices": []}


def approval(*, approved: bool = True, arms: Mapping[str, bool] | None = None) -> dict[str, Any]:
    per = {"speculative": approved, "both": approved} if arms is None else arms
    reasons = [] if approved else ["both: REGRESSED against quantized: recall.exact_match dropped 5.00 points"]
    return {
        "schema": "sqtool.speculation/1",
        "approved": approved,
        "gate": "report",
        "method": "draft_model",
        "speculative_config": {"method": "draft_model", "model": "draft", "num_speculative_tokens": 4},
        "pairs": {},
        "arms": {
            arm: {"approved": ok, "reasons": [] if ok else ["REGRESSED against quantized"]} for arm, ok in per.items()
        },
        "rules": [],
        "reasons": reasons,
    }
