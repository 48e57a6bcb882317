"""Drift and changed answers for the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqtool.report.facts import Facts, Table
from sqtool.report.numbers import value


def add_drift(facts: Facts, drift: Mapping[str, Any] | None) -> None:
    """The table of distribution drift, and whether the engine computes the same."""
    if not drift:
        return
    groups = [("all tokens", drift.get("all")), ("answer tokens", drift.get("answers"))]
    groups += [(f"answers, {kind}", part.get("answers")) for kind, part in drift.get("by_kind", {}).items()]
    rows = []
    for name, part in groups:
        if not part or "kl_mean" not in part:
            continue
        rows.append(
            (
                name,
                str(part["positions"]),
                value(part["kl_mean"], 5),
                value(part["kl_p99"], 4),
                value(part["kl_max"], 3),
                f"{100 * part['top1_agreement']:.2f} %",
                value(part["perplexity_ratio"], 4),
            )
        )
    notes = [f"Measured with {drift.get('path')} on {drift.get('device')}, {drift.get('texts')} texts; KL in nats."]
    broken = sum(int(part.get("non_finite", 0)) for _, part in groups[:1] if part)
    if broken:
        notes.append(f"{broken} positions gave NaN or infinity and are left out.")
    notes += [*_engine_notes(drift.get("check")), *_stability_notes(drift.get("stability"))]
    headers = ("where", "positions", "mean KL", "p99 KL", "max KL", "same top token", "perplexity ratio")
    facts.drift = Table(headers, tuple(rows), tuple(notes))


def _engine_notes(check: Mapping[str, Any] | None) -> list[str]:
    """Whether drift is of what the engine computes."""
    if not check:
        return []
    said = []
    for side in ("baseline", "candidate"):
        found = check[side]
        if "problem" in found:
            said.append(f"{side}: {found['problem']}")
        else:
            said.append(
                f"{side}: log-probabilities differ by at most {value(found['logprob_p99'], 3)} nats at 99 % of "
                f"{found['positions']} positions, top token near at {100 * found['top1_near']:.2f} %"
            )
    words = {True: "The engine computes the same", False: "NOT COMPARABLE WITH THE ENGINE", None: "Not checked"}
    return [f"{words[check['comparable']]} ({'; '.join(said)})."]


def _stability_notes(stability: Mapping[str, Any] | None) -> list[str]:
    if not stability:
        return []
    wrong = f"{stability['nan']} NaN and {stability['inf']} infinities in the layers"
    notes = [f"{wrong}."]
    if stability["activation_max"] is not None:
        at = f"{value(stability['activation_max'], 4)} behind {stability['activation_max_layer']}"
        notes = [f"Largest activation {at}; {wrong}."]
    shares = [(what, stability.get(f"{what}_saturation")) for what in ("fp8", "k", "v")]
    told = [f"{what} {100 * share:.3g} %" for what, share in shares if share is not None]
    if told:
        notes.append(f"Beyond what FP8 can say, in the worst layer: {', '.join(told)} of the values.")
    return notes


def add_changes(facts: Facts, changes: Mapping[str, Any] | None) -> None:
    """The table of flips and first differences."""
    rows = []
    for task, found in (changes or {}).items():
        divergence = found.get("divergence", {})
        same = f"{divergence['same']} of {found['items']}" if divergence else ""
        unit = next((unit for unit in ("tokens", "characters") if unit in divergence), "")
        at = f"{unit[:-1]} {divergence[unit]['p50']:g}" if unit else ""
        for metric, counts in found["flips"].items():
            flips = (str(counts["right_to_wrong"]), str(counts["wrong_to_right"]))
            rows.append((f"{task}.{metric}", *flips, same, at))
    if rows:
        headers = ("metric", "right to wrong", "wrong to right", "same answer", "median first difference")
        facts.changes = Table(headers, tuple(rows))
