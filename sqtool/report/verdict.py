"""The verdict's metrics, slices and worst items as tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqtool.files import read_json
from sqtool.report.numbers import percent, signed_points

if TYPE_CHECKING:
    from sqtool.report.facts import Facts, WorseItem

HEADERS = ("metric", "baseline", "candidate", "change", "interval", "margin", "items", "better/worse", "outcome")
MAX_WORSE = 6
MAX_TEXT = 600
REASONS = {
    "drop_exceeds_margin": "the drop is shown to exceed the margin",
    "drop_shown": "a drop is shown, and the estimate is at or past the margin",
    "exact_test_reaches_margin": "the interval clears the margin, the exact test does not yet",
    "sequence_reaches_margin": "the sequence has not excluded a drop of the margin",
    "stopped_early": "not decided when the evaluation ended",
    "too_few_items_even_without_flips": "too few items to pass even if no answer changed",
}


def add_verdict(facts: Facts, path: Path) -> None:
    """Put the verdict in `path` into the report."""
    from sqtool.report.facts import Table

    verdict = read_json(path)
    confidence = 100 * (1 - 2 * verdict["alpha"])
    gated = [m for m in verdict["metrics"] if m["gated"]]
    # A diagnostic metric that did not move says nothing; verdict.json has it.
    other = [m for m in verdict["metrics"] if not m["gated"] and m["improved"] + m["worsened"]]
    notes = [
        f"Paired by item. Change and {confidence:g} % interval are in points, candidate minus baseline.",
        "PASS: the lower end stays above minus the margin. Every gated metric must pass.",
    ]
    for metric in gated:
        needed = metric.get("items_to_decide")
        if metric["outcome"] == "INCONCLUSIVE" and needed:
            notes.append(f"About {needed} items would decide {metric['metric']}, were they to behave like these.")
    notes += [*_differences(verdict), *_engine(verdict.get("control")), *_ended(verdict)]
    facts.metrics = Table(HEADERS, tuple(metric_row(m) for m in (*gated, *other)), (*notes, *verdict["notes"]))
    shown = [s for s in verdict["slices"] if s["outcome"] not in ("PASS", "NOT_JUDGED")]
    if shown:
        facts.slices = Table(HEADERS, tuple(metric_row(s) for s in shown))
    bad = [m for m in gated if m["outcome"] != "PASS"] or gated
    for metric in bad:
        for item in metric.get("worst", ())[:MAX_WORSE]:
            if len(facts.worse) < MAX_WORSE:
                facts.worse.append(worse_item(metric["metric"], item))


def _differences(verdict: Mapping[str, Any]) -> list[str]:
    """What beside the weights is not the baseline's."""
    return [
        f"{d['file']}:{d['field']} is {d['candidate']}, the baseline's {d['baseline']}"
        + (" (gate.allow_differences lets it be)." if d["allowed"] else ": that alone refuses.")
        for d in verdict.get("differences") or ()
    ]


def _engine(control: Mapping[str, Any] | None) -> list[str]:
    """What the A/A control says of the engine."""
    if control is None:
        return ["Whether the engine agrees with itself was not tested."]
    if control["deterministic"]:
        return [f"A/A control: the baseline gave the same {control['items']} answers twice, after a restart."]
    flips = ", ".join(f"{m['metric']} {m['flips']} of {m['items']}" for m in control["metrics"])
    steady = "few enough" if control["stable"] else "too many for a verdict"
    return [f"A/A control: the baseline disagreed with itself ({flips} items), {steady}."]


def _ended(verdict: Mapping[str, Any]) -> list[str]:
    ended = [f"{s['items']} of {s['of']} items of {s['task']}" for s in verdict.get("stopped", ())]
    left = [str(name) for name in verdict.get("not_measured", ())]
    return [
        *([f"The evaluation ended early, after {', '.join(ended)}: that was certain."] if ended else []),
        *([f"Not measured, for it had ended before: {', '.join(left)}."] if left else []),
    ]


def metric_row(metric: Mapping[str, Any]) -> tuple[str, ...]:
    """A metric or slice of a verdict under HEADERS."""
    name = metric["metric"]
    if metric["slice_field"] is not None:
        name += f" [{metric['slice_field']}={metric['slice_value']}]"
    outcome = metric["outcome"] if metric["gated"] else "(not gated)"
    if metric["gated"] and metric["outcome"] != "PASS":
        outcome += f": {reason_words(metric['reason'])}"
    return (
        name,
        percent(metric["baseline"]),
        percent(metric["candidate"]),
        signed_points(metric["difference"]),
        f"{signed_points(metric['lower'])} to {signed_points(metric['upper'])}",
        f"{100 * metric['margin']:.2f}" if metric["gated"] else "",
        str(metric["items"]),
        f"{metric['improved']}/{metric['worsened']}",
        outcome,
    )


def reason_words(reason: Any) -> str:
    """The reason of an outcome in words; one that this version does not know as it is written."""
    return REASONS.get(str(reason), str(reason).replace("_", " "))


def worse_item(metric: str, item: Mapping[str, Any]) -> WorseItem:
    """One of the verdict's worst items, cut to what a person reads."""
    from sqtool.report.facts import WorseItem

    return WorseItem(
        metric=metric,
        id=str(item["id"]),
        kind=str(item["kind"] or ""),
        expected=_short(item["expected"]),
        baseline=_short(_said(item["baseline_output"])),
        candidate=_short(_said(item["candidate_output"])),
    )


def _said(output: Any) -> Any:
    """The part of an output that a person compares: the calls if there are any, else the text."""
    if isinstance(output, Mapping):
        calls = output.get("tool_calls")
        return calls or output.get("text")
    return output


def _short(content: Any) -> str:
    if isinstance(content, Mapping) and set(content) <= {"text", "calls"} and len(content) == 1:
        content = next(iter(content.values()))
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + " ..."
