"""The recipe's rules on speculation, judged on intervals: a rule holds only when its limit is shown to be kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqtool.speculate.latency import requests_needed
from sqtool.speculate.resample import Interval
from sqtool.speculate.spec import RulesSpec

KEPT, EXCEEDED, NOT_SHOWN = "kept", "exceeded", "not_shown"
PLAIN = {"both": "quantized", "speculative": "baseline"}
"""The arm of the same weights that an arm is held to."""
FAILED_SHARE = 0.01
"""With this share of requests failed, p99 may be one of them."""


def judge(rules: RulesSpec | None, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry for each rule that the recipe sets, at each load: {rule, value, limit, ci, ok, status, ...}.

    `ok` when the whole interval is within the limit, as the gate passes a metric when the bound is; `status` tells a
    limit that was shown to be exceeded (the whole interval is past it) from one that the requests sent cannot decide.
    Where the two baseline arms of an A/A control differ in the measure (not `steady`), the machine changed by more than
    the interval knows: `judged_on` is the interval widened by their ratio (`noise`), and decides.

    A measure that is not there keeps no rule. Latencies are those of answered requests, so a rule on them is
    `not_shown` where 1 % of the arm's requests failed, or a larger share than of the arm that it is held to: what
    failed may be what was slowest.

    The arm that would be deployed is judged: `both` against `quantized`, or `speculative` against `baseline` where
    there is no `both`; the acceptance drop is that of `both` from `speculative`.
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
            noise = 1.0
            if rule == "max_acceptance_drop":
                value, ci = _drop(report, load)
            else:
                measure = {"max_p99_ratio": "e2e_p99", "max_cost_ratio": "cost_per_accepted_answer"}[rule]
                value, ci, against = _ratio(report, load, measure, arm)
                noise = _noise(report, load, measure)
            where = {"rule": rule, "load": load, "arm": arm, "against": against}
            entry = {**where, **_decide(value, ci, limit, noise)}
            if rule == "max_p99_ratio":
                if failed := _failures(report, load, arm):
                    entry |= {"ok": False, "status": NOT_SHOWN, "reason": failed}
                elif value is not None and ci is None:
                    entry["reason"] = f"an interval of p99 needs {requests_needed(0.99)} distinct requests"
            entries.append(entry)
    return entries


def _failures(report: Mapping[str, Any], load: str, arm: str) -> str:
    """How many requests of `arm` failed, where they are too many for its latencies to stand for all; else empty."""

    def of(name: str) -> tuple[int, int]:
        found = (report["arms"].get(name, {}).get("loads") or {}).get(load) or {}
        return int((found.get("failures") or {}).get("count") or 0), int(found.get("requests") or 0)

    failed, sent = of(arm)
    plain_failed, plain_sent = of(PLAIN[arm])
    if not failed or (failed / sent < FAILED_SHARE and failed * plain_sent <= plain_failed * sent):
        return ""
    return f"{failed} of {sent} requests failed"


def _noise(report: Mapping[str, Any], load: str, measure: str) -> float:
    """By what factor the A/A arms differ; 1 where they do not, or where there are none.

    Where the measure has no interval there (steady is None), it is not known and nothing is widened.
    """
    entry = (report["control"].get(load) or {}).get(measure)
    if entry is None or entry["steady"] is not False:
        return 1.0
    return max(float(entry["gain"]), 1 / float(entry["gain"]))


def _decide(value: float | None, ci: Interval, limit: float, noise: float) -> dict[str, Any]:
    wide = None if ci is None else [ci[0] / noise, ci[1] * noise]
    if value is None:
        status, reason = NOT_SHOWN, "the measure is missing; `missing` says why"
    elif wide is None:
        status, reason = NOT_SHOWN, "there is no interval: too few requests, or blocks, for this measure"
    elif wide[1] <= limit:
        status, reason = KEPT, ""
    elif wide[0] > limit:
        status, reason = EXCEEDED, f"{value:.4g} is more than {limit:g}, and so is its whole interval"
    else:
        status, reason = NOT_SHOWN, f"the interval reaches {wide[1]:.4g}, past {limit:g}; more requests would narrow it"
        if noise > 1:
            reason = f"two runs of the baseline differ {noise:.3g} times; a quiet machine or more rounds decide it"
    judged = {"ci": ci, "noise": noise, "judged_on": wide}
    return {"value": value, "limit": limit, **judged, "ok": status == KEPT, "status": status, "reason": reason}


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
    # A gain whose interval reaches 0 (nothing accepted in some resamples) bounds the ratio on one side only.
    known = ci is not None and ci[0] > 0
    return 1 / entry["gain"], [1 / ci[1], 1 / ci[0]] if known else None, entry["against"]
