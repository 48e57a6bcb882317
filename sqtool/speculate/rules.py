"""The recipe's rules on speculation, judged on intervals: a rule holds only when its limit is shown to be kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqtool.speculate.resample import Interval
from sqtool.speculate.spec import RulesSpec

KEPT, EXCEEDED, NOT_SHOWN = "kept", "exceeded", "not_shown"


def judge(rules: RulesSpec | None, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry for each rule that the recipe sets, at each load: {rule, value, limit, ci, ok, status, ...}.

    `ok` when the whole interval is within the limit, as the gate passes a metric when the bound is; `status` tells a
    limit that was shown to be exceeded (the whole interval is past it) from one that the requests sent cannot decide.
    A measure that is not there keeps no rule. The arm that would be deployed is judged: `both` against `quantized`, or
    `speculative` against `baseline` where there is no `both`; the acceptance drop is that of `both` from `speculative`.
    """
    if rules is None:
        return []
    entries = []
    arm = "both" if "both" in report["arms"] else "speculative"
    for load in report["loads"]:
        for rule, limit in rules.model_dump().items():
            if limit is None:
                continue
            against: str | None = "speculative"
            if rule == "max_acceptance_drop":
                value, ci = _drop(report, load)
            else:
                measure = {"max_p99_ratio": "e2e_p99", "max_cost_ratio": "cost_per_accepted_answer"}[rule]
                value, ci, against = _ratio(report, load, measure, arm)
            entries.append({"rule": rule, "load": load, "arm": arm, "against": against, **_decide(value, ci, limit)})
    return entries


def _decide(value: float | None, ci: Interval, limit: float) -> dict[str, Any]:
    if value is None:
        status, reason = NOT_SHOWN, "the measure is missing; `missing` says why"
    elif ci is None:
        status, reason = NOT_SHOWN, "there is no interval: too few requests, or blocks, for this measure"
    elif ci[1] <= limit:
        status, reason = KEPT, ""
    elif ci[0] > limit:
        status, reason = EXCEEDED, f"{value:.4g} is more than {limit:g}, and so is its whole interval"
    else:
        status, reason = NOT_SHOWN, f"the interval reaches {ci[1]:.4g}, past {limit:g}; more requests would narrow it"
    return {"value": value, "limit": limit, "ci": ci, "ok": status == KEPT, "status": status, "reason": reason}


def _drop(report: Mapping[str, Any], load: str) -> tuple[float | None, Interval]:
    overall = ((report["acceptance_change"] or {}).get(load) or {}).get("overall")
    if overall is None or overall["acceptance_rate"]["value"] is None:
        return None, None
    value, ci = overall["acceptance_rate"]["value"], overall["acceptance_rate"]["ci"]
    return -value, None if ci is None else [-ci[1], -ci[0]]


def _ratio(report: Mapping[str, Any], load: str, measure: str, arm: str) -> tuple[float | None, Interval, str | None]:
    """How many times the latency or the cost of the arm without speculation: the inverse of its gain."""
    entry = ((report["interaction"].get(load) or {}).get(measure) or {}).get("over_plain", {}).get(arm)
    if entry is None:
        return None, None, None
    ci = entry["ci"]
    return 1 / entry["gain"], None if ci is None else [1 / ci[1], 1 / ci[0]], entry["against"]
