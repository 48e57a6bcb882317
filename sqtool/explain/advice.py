"""What follows from what was seen, as sentences: each names the observation that it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqtool.explain.worse import Change, Part

MOST = 0.8
"""A kind or failure with at least this share of the worse items is what happened to them."""
BROKEN = 0.5
"""With more of the items worse than this, a checkpoint is broken rather than imprecise."""
NEEDS_DATA = ("awq", "gptq", "smoothquant")
BROKEN_FAILURES = {
    "truncated": "they run into max_tokens: the candidate does not stop. Compare eos_token_id in "
    "generation_config.json and the chat template with the baseline's",
    "empty": "they are empty. Compare the chat template and the special tokens with the baseline's",
    "left_in_content": "the calls stand in the text, where the server's parser does not find them. Compare the chat "
    "template and the tool parser with the baseline's",
    "unparseable": "the calls are no JSON any more. Look at the tokenizer and the special tokens before the weights",
}
"""Failures whose cause is seldom rounding, and what to compare first."""


def of_regression(
    changes: Sequence[Change], methods: Sequence[Mapping[str, Any]], layers: Sequence[Mapping[str, Any]]
) -> list[str]:
    """For a REGRESSED verdict; `methods` as in the recipe (`{name: options}`), `layers` the worst ones first."""
    advice = []
    everywhere = []
    for change in changes:
        if change.worse > BROKEN * change.items:
            advice.append(
                f"{change.metric}: {change.worse:,} of {change.items:,} items got worse, which is more than rounding "
                "does. Look for something broken first: chat template, tokenizer, special tokens, scales of a layer."
            )
            continue
        cause = next((BROKEN_FAILURES[f] for f, n in change.failures if f in BROKEN_FAILURES and _most(n, change)), "")
        if cause:
            advice.append(f"{change.metric}: of the answers that got worse most fail the same way: {cause}.")
            continue
        one = only_kind(change)
        if one is None:
            everywhere.append(change)
        else:
            advice.append(_one_kind(change, one, methods))
    if everywhere:
        advice.append(_more_precision(everywhere, methods))
    if layers:
        names = ", ".join(str(layer["name"]) for layer in layers)
        advice.append(f"The layers with the largest error are {names}: leave them in 16 bits with `ignore`.")
    return list(dict.fromkeys(advice))


def of_differences(differ: Sequence[Mapping[str, Any]]) -> str:
    """For a candidate that differs from its baseline beside the weights; as in the verdict's JSON."""
    names = [f"{d['file']}:{d['field']}" for d in differ]
    return (
        f"{', '.join(names)}: copy what belongs to them from the baseline into the candidate and run again; where the "
        f"difference is meant, allow it with `gate: {{allow_differences: [{', '.join(names)}]}}`."
    )


def only_kind(change: Change) -> Part | None:
    """The kind that the worse items belong to, where a task has several kinds and most of them are of one."""
    if len(change.kinds) < 2 or not change.worse:
        return None
    first = change.kinds[0]
    return first if _most(first.worse, change) else None


def _most(count: int, change: Change) -> bool:
    return count >= MOST * change.worse


def _one_kind(change: Change, kind: Part, methods: Sequence[Mapping[str, Any]]) -> str:
    seen = f"{change.metric}: {kind.worse:,} of the {change.worse:,} items that got worse are of kind {kind.value}"
    if not _calibrated(methods):
        return (
            f"{seen}. The recipe's method sees no data; one that does (awq, gptq) can be calibrated with more of this "
            "kind."
        )
    return (
        f"{seen}. Calibrate with more of it: a source of that kind in calibrate.sources with a higher weight, a higher "
        "coverage.min_per_kind or num_calibration_samples."
    )


def _more_precision(changes: Sequence[Change], methods: Sequence[Mapping[str, Any]]) -> str:
    lost = ", ".join(f"{c.metric} ({c.worse:,} of {c.items:,} items, {_where(c)})" for c in changes)
    steps = []
    options: Mapping[str, Any] = {}
    for step in methods:
        for name, given in step.items():
            options = given if isinstance(given, Mapping) else {}
            if name == "rtn":
                steps.append("awq or gptq in place of rtn")
    scheme = str(options.get("scheme") or "")
    if scheme == "W4A16":
        steps.append("an asymmetric scheme (W4A16_ASYM)")
    if "A16" in scheme and options.get("group_size") is None:
        steps.append("a smaller group_size")
    if "A8" in scheme and not any("smoothquant" in step for step in methods):
        steps.append("smoothquant before it")
    steps.append("more bits (W8A16, fp8)" if scheme.startswith("W4") else "more bits, or fewer layers")
    return (
        f"{lost}: no single kind among others is to blame, so it is precision that is missing rather than calibration "
        f"data. Try {', '.join(steps)}."
    )


def _where(change: Change) -> str:
    return f"all of kind {change.kinds[0].value}" if len(change.kinds) == 1 else "spread over its kinds"


def _calibrated(methods: Sequence[Mapping[str, Any]]) -> bool:
    return not methods or any(name in NEEDS_DATA for step in methods for name in step)


def of_doubt(undecided: Sequence[Mapping[str, Any]], reasons: Sequence[str], *, allowed: bool) -> list[str]:
    """For an INCONCLUSIVE verdict: its metrics and slices that are not decided, as in the verdict's JSON; `allowed`
    by the recipe or not."""
    advice = []
    for metric in undecided:
        name, items = part_name(metric), metric.get("items", 0)
        needed, surer = metric.get("items_to_decide"), metric.get("items_for_power")
        if needed:
            chance = f" ({surer:,} for a chance of 80 %)" if surer else ""
            advice.append(
                f"{name}: measure more items. {items:,} cannot decide; about {needed:,} would, if they behave like "
                f"these{chance}."
            )
        elif metric.get("reason") in ("interval_reaches_margin", "too_few_items"):
            advice.append(
                f"{name}: the change is so close to the margin that more items will hardly decide it. Improve the "
                "candidate, or choose the margin anew before the next measurement."
            )
        else:
            reason = str(metric.get("reason", "")).replace("_", " ")
            advice.append(f"{name}: {reason or 'not decided'}; more items alone may not help.")
    if not advice:
        advice = [f"The gate could not decide: {reason}." for reason in reasons]
    if allowed:
        return [*advice, "The recipe accepts the risk (`gate: {inconclusive: allow}`)."]
    return [*advice, "To accept the risk instead, write `gate: {inconclusive: allow}` into the recipe."]


def of_unsteadiness(reasons: Sequence[str]) -> list[str]:
    """For an engine on which no verdict is possible; the recipe cannot allow that."""
    remedy = (
        "Fix what varies (sampling, batch-dependent kernels, a shared server), or measure elsewhere. No number of "
        "items decides on such an engine, and `gate: {inconclusive: allow}` does not cover it."
    )
    return [*(f"The engine does not agree with itself: {reason}." for reason in reasons), remedy]


def of_pass(gated: Sequence[Mapping[str, Any]]) -> list[str]:
    """For a PASS: how much room was left, and what fell although it passed."""
    if not gated:
        return []
    least = min(gated, key=lambda m: m["lower"] + m["margin"])
    room = (
        f"Nothing has to be done. Least room: {part_name(least)}, whose lower bound {100 * least['lower']:+.2f} is "
        f"{100 * (least['lower'] + least['margin']):.2f} points above minus its margin."
    )
    fell = [
        f"{part_name(m)} did fall: its interval ({100 * m['lower']:+.2f} to {100 * m['upper']:+.2f} points) is below "
        "zero, within the margin. A smaller margin is the way to forbid that."
        for m in gated
        if m["upper"] < 0
    ]
    return [room, *fell]


def part_name(metric: Mapping[str, Any]) -> str:
    """`task.metric`, with `[field=value]` for a slice."""
    if metric.get("slice_field") is None:
        return str(metric["metric"])
    return f"{metric['metric']}[{metric['slice_field']}={metric['slice_value']}]"
