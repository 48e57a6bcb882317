"""How answers fail, by layer, and what more tools on offer cost: from the summaries of both evaluations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from sqtool.report.numbers import percent, signed_points

if TYPE_CHECKING:
    from sqtool.report.facts import Facts

METRIC = "call_match"


def add_failures(facts: Facts, baseline: Mapping[str, Any], candidate: Mapping[str, Any]) -> None:
    """Put failure layers and numbers of tools into the report; `baseline` and `candidate` are {task: summary}.

    A task that ended early on one side is left out: its items are not the other side's.
    """
    from sqtool.report.facts import Table

    both = [
        (name, baseline[name], after)
        for name, after in candidate.items()
        if name in baseline and baseline[name].get("n") == after.get("n")
    ]
    layers = tuple(row for name, before, after in both for row in _layers(name, before, after))
    if layers:
        facts.failures = Table(("task", "answers that failed by", "baseline", "candidate", "of"), layers)
    rows: list[tuple[str, ...]] = []
    notes = []
    for name, before, after in both:
        found = list(_counts(before, after))
        if len(found) < 2:
            continue
        rows += [
            (name, str(count), str(n), percent(left), percent(right), signed_points(right - left))
            for count, n, left, right in found
        ]
        notes += [_cliff(name, "baseline", [(count, left) for count, _, left, _ in found])]
        notes += [_cliff(name, "candidate", [(count, right) for count, _, _, right in found])]
    if rows:
        headers = ("task", "tools on offer", "items", "baseline", "candidate", "change")
        facts.tool_counts = Table(headers, tuple(rows), tuple(notes))


def _layers(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    left, right = before.get("failures", {}), after.get("failures", {})
    for layer in sorted({*left, *right} - {"none"}):
        yield name, layer, str(left.get(layer, 0)), str(right.get(layer, 0)), str(after["n"])


def _counts(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[int, int, float, float]]:
    """(tools, items, baseline's and candidate's call_match) of a task that is sliced by n_tools."""
    left, right = (side.get("slices", {}).get("n_tools", {}) for side in (before, after))
    for value in sorted((v for v in left if v.isdigit() and v in right), key=int):
        scores = [side[value].get("metrics", {}).get(METRIC) for side in (left, right)]
        if None not in scores:
            yield int(value), int(right[value]["n"]), scores[0], scores[1]


def _cliff(name: str, side: str, scores: list[tuple[int, float]]) -> str:
    """The largest fall between neighbouring numbers of tools, in words."""
    (few, high), (many, low) = min(pairwise(scores), key=lambda pair: pair[1][1] - pair[0][1])
    if low >= high:
        return f"{name}, {side}: {METRIC} does not fall with more tools."
    return f"{name}, {side}: {METRIC} falls most from {few} to {many} tools, by {100 * (high - low):.2f} points."
