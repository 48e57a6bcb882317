"""The verdict in plain words, for a terminal or a report: what was decided, on what evidence, and what to do."""

from __future__ import annotations

from sqtool.gate.verdict import MetricVerdict, Verdict

_OVERALL = {
    "PASS": "PASS: no gated metric fell by as much as its margin.",
    "REGRESSED": "REGRESSED: the candidate is worse than the baseline by the margin or more.",
    "INCONCLUSIVE": "INCONCLUSIVE: these items cannot tell whether the candidate is good enough.",
}
_UNSTEADY = "INCONCLUSIVE: the engine does not agree with itself, so no verdict is possible on it."
_REFUSED = "REGRESSED: the candidate is not served as the baseline is."


def explain(verdict: Verdict) -> str:
    """Several lines of text, the outcome first, then each gated metric, then slices and notes."""
    refused = any(not found.allowed for found in verdict.differences)
    lines = [_REFUSED if refused else _OVERALL[verdict.outcome]]
    if verdict.outcome == "INCONCLUSIVE" and not verdict.undecided:
        lines = [_UNSTEADY]
        if verdict.inconclusive == "allow":
            lines.append("The recipe's gate.inconclusive: allow does not cover that.")
    elif verdict.outcome == "INCONCLUSIVE":
        lines.append(
            "The recipe allows that (gate.inconclusive: allow)."
            if verdict.inconclusive == "allow"
            else "The recipe refuses then (gate.inconclusive: refuse)."
        )
    lines += [
        f"{d.name} is not the baseline's: {d.candidate} in place of {d.baseline}"
        + (" (allowed by gate.allow_differences)." if d.allowed else ". That alone refuses, whatever the scores are.")
        for d in verdict.differences
    ]
    lines += _control(verdict)
    lines += [
        f"The evaluation ended early: {s.items:,} of {s.of:,} items of {s.task} were asked, and they were enough."
        for s in verdict.stopped
    ]
    lines.append("")
    lines += [_sentence(metric, verdict.alpha) for metric in verdict.metrics if metric.gated]
    blocking = [s for s in verdict.slices if s.outcome == "REGRESSED" or (s.require == "pass" and s.outcome != "PASS")]
    lines += [_sentence(part, verdict.alpha) for part in blocking]
    lines += [f"{name}: not measured, because the evaluation had ended before." for name in verdict.not_measured]
    unjudged = [
        s for s in verdict.slices if s.outcome == "NOT_JUDGED" and s.reason != "stopped_early" and s not in blocking
    ]
    for part in unjudged:
        need = f"{part.items_to_decide:,} items" if part.items_to_decide else "many more items"
        lines.append(f"Not judged: {part.name} has {part.items:,} items and would need about {need}.")
    lines += [f"Note: {note}." for note in verdict.notes]
    return "\n".join(lines).rstrip() + "\n"


def _control(verdict: Verdict) -> list[str]:
    control = verdict.control
    if control is None:
        return ["Whether the engine agrees with itself was not tested (no A/A control)."]
    if control.deterministic:
        return [f"The engine gave the same {control.items:,} answers twice, character by character."]
    said = f"The engine gave other answers to {control.different_answers:,} of {control.items:,} items the second time"
    if control.stable:
        return [f"{said}, too few flips to matter here."]
    return [f"{said}: too unsteady for a verdict."]


def points(share: float, *, signed: bool = False) -> str:
    """A share of 1 as percentage points: 0.0213 -> `2.13`."""
    return f"{100 * share:+.2f}" if signed else f"{100 * share:.2f}"


def _sentence(m: MetricVerdict, alpha: float) -> str:
    confidence = f"{100 * (1 - 2 * alpha):g} %"
    moved = f"{m.worsened:,} of {m.items:,} items got worse and {m.improved:,} better"
    shown = (
        f"{points(m.baseline)} -> {points(m.candidate)} %, difference {points(m.difference, signed=True)} points "
        f"({confidence} interval {points(m.lower, signed=True)} to {points(m.upper, signed=True)}), "
        f"margin {points(m.margin)}"
    )
    head = f"{m.name}: {m.outcome}. {shown}; {moved}."
    return f"{head} {_why(m)}"


def _why(m: MetricVerdict) -> str:
    if m.reason == "drop_exceeds_margin":
        return "The whole interval lies below the margin, so the drop is larger than the margin."
    if m.reason == "drop_shown":
        return (
            f"A drop is shown (adjusted p = {m.p_adjusted:.2g}, {m.test}) and the best estimate of it is at or past "
            "the margin; that it exceeds the margin is not itself shown."
        )
    if m.outcome == "PASS":
        return "The lower bound stays above the margin."
    if m.reason == "exact_test_reaches_margin":
        return f"The interval clears the margin, the exact test does not yet (p = {m.pass_p_value:.3f})." + _needs(m)
    if m.reason == "sequence_reaches_margin":
        return "The sequence that may stop early has not excluded a drop of the margin." + _needs(m)
    if m.reason == "stopped_early":
        return "Not decided when the evaluation ended."
    if m.reason == "too_few_items":
        return "There are fewer items than min_items asks for." + _needs(m)
    what = (
        "Even a candidate without a single changed answer could not pass on so few items."
        if m.worsened + m.improved == 0 or m.outcome == "NOT_JUDGED"
        else "The interval reaches past the margin, and no drop of that size is shown either."
    )
    return what + _needs(m)


def _needs(m: MetricVerdict) -> str:
    if m.items_to_decide is None:
        return " The difference sits so close to the margin that no practical number of items would decide it."
    return (
        f" About {m.items_to_decide:,} items would decide it if the rest behave like these "
        f"({m.items_for_power:,} for a chance of 80 %)."
    )
