"""What changed between two sides' records of one metric. Pure: paired records in, counts and excerpts out.

Parts of the items that fell most are looked for after the fact, among many: chance alone makes some part look bad, so
they point to where to look and prove nothing. What is to be judged is declared in the recipe (`gate.slices`).
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sqtool.errors import DataError
from sqtool.gate.intervals import Floats
from sqtool.gate.records import PairedMetric, PairedTask, paired_metric, slice_values
from sqtool.gate.spec import SliceRule

EXAMPLES = 3
PARTS = 3
LEAST_ITEMS = 10
"""Smaller parts are not looked at."""
MOST_VALUES = 50
"""A field with more distinct texts than this names items rather than parts of them."""
FEW_NUMBERS = 8
"""A field with more distinct numbers than this is cut at its quartiles."""
BEFORE, AFTER = 24, 40
"""Characters shown before and behind the first difference of two answers."""


@dataclass(frozen=True)
class Part:
    """The items with one value of a field; `baseline` and `candidate` are mean scores."""

    field: str
    value: str
    items: int
    worse: int
    better: int
    baseline: float
    candidate: float


@dataclass(frozen=True)
class Example:
    """An item that got worse: `at` is the first character at which the answers differ, None when the text is the same.
    `baseline` and `candidate` are excerpts around it (hostile text)."""

    id: str
    kind: str
    failure: str
    detail: str
    at: int | None
    baseline: str
    candidate: str


@dataclass(frozen=True)
class Change:
    """One metric: how many items changed, where, and how they fail now."""

    metric: str
    items: int
    worse: int
    better: int
    kinds: tuple[Part, ...]
    """Every kind, that with most worse items first."""
    failures: tuple[tuple[str, int], ...]
    """How the worse items fail now (the records' `failure`), most often first; "" for none recorded."""
    parts: tuple[Part, ...]
    """The parts that fell most, found after the fact among `looked_at`."""
    looked_at: int
    examples: tuple[Example, ...]


def change(task: PairedTask, name: str, *, lower_is_better: bool = False) -> Change:
    """What happened to the metric `name` (`task.metric`); the task's records must be loaded with their fields."""
    data = paired_metric(task, name.rpartition(".")[2])
    moved = (data.baseline - data.candidate) if lower_is_better else (data.candidate - data.baseline)
    order = np.argsort(moved, kind="stable")
    worse = [int(at) for at in order if moved[at] < 0]
    records = _records(task, data, worse)
    found = [p for field in _fields(task) for p in _parts(task, data, moved, field)]
    fell = [p for p in found if LEAST_ITEMS <= p[0].items < len(moved) and p[0].worse]
    fell.sort(key=lambda p: (round(p[1], 9), p[0].candidate - p[0].baseline, p[0].field, p[0].value))
    return Change(
        metric=name,
        items=len(moved),
        worse=len(worse),
        better=int(np.count_nonzero(moved > 0)),
        kinds=tuple(sorted((p for p, _ in found if p.field == "kind"), key=lambda p: (-p.worse, p.value))),
        failures=tuple(Counter(str(right.get("failure") or "") for _, right in records).most_common()),
        parts=tuple(p for p, z in fell if z < 0)[:PARTS],
        looked_at=sum(LEAST_ITEMS <= p.items < len(moved) for p, _ in found),
        examples=tuple(_example(left, right) for left, right in records[:EXAMPLES]),
    )


def _records(task: PairedTask, data: PairedMetric, at: Sequence[int]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Both sides' whole records of these items, in this order."""
    rows = data.rows[list(at)]
    lefts = task.baseline.whole(int(task.base_at[row]) for row in rows)
    rights = task.candidate.whole(int(task.cand_at[row]) for row in rows)
    return [(lefts[int(task.base_at[row])], rights[int(task.cand_at[row])]) for row in rows]


def _fields(task: PairedTask) -> list[str]:
    return ["kind", *sorted(set(itertools.chain.from_iterable(task.baseline.fields or ())))]


def _parts(task: PairedTask, data: PairedMetric, moved: Floats, field: str) -> Iterator[tuple[Part, float]]:
    """The parts that `field` makes, each with the normal score of its change, that of the gate's sign-flip test."""
    try:
        values = np.array(slice_values(task, SliceRule(field=field)), dtype=np.object_)[data.rows]
    except DataError:  # a field whose value is null everywhere parts nothing
        return
    values = _binned(values) if field != "kind" else values
    names = sorted(set(values.tolist()) - {""})
    if len(names) > MOST_VALUES:
        return
    for name in names:
        rows = np.flatnonzero(values == name)
        part = moved[rows]
        square = float(np.sum(part**2))
        score = float(np.sum(part)) / square**0.5 if square else 0.0
        yield (
            Part(
                field=field,
                value=str(name),
                items=len(rows),
                worse=int(np.count_nonzero(part < 0)),
                better=int(np.count_nonzero(part > 0)),
                baseline=float(np.mean(data.baseline[rows])),
                candidate=float(np.mean(data.candidate[rows])),
            ),
            score,
        )


def _binned(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Many different numbers as ranges between their quartiles; anything else as it is."""
    present = values != ""
    numbers = [_number(v) for v in values[present]]
    if any(n is None for n in numbers) or len(set(numbers)) <= FEW_NUMBERS:
        return values
    known = np.array(numbers, dtype=np.float64)
    edges = np.unique(np.quantile(known, (0.25, 0.5, 0.75), method="lower"))
    bins = np.searchsorted(edges, known, side="left")
    names = {b: f"{known[bins == b].min():g} to {known[bins == b].max():g}" for b in set(bins.tolist())}
    binned = values.copy()
    binned[present] = [names[b] for b in bins.tolist()]
    return binned


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _example(left: Mapping[str, Any], right: Mapping[str, Any]) -> Example:
    at, before, after = first_difference(said(left.get("output")), said(right.get("output")))
    return Example(
        id=str(right["id"]),
        kind=str(right.get("kind") or ""),
        failure=str(right.get("failure") or ""),
        detail=str(right.get("detail") or ""),
        at=at,
        baseline=before,
        candidate=after,
    )


def said(output: Any) -> str:
    """The part of a recorded output that is compared: its calls as `name arguments`, else its text; "" for none."""
    if not isinstance(output, Mapping):
        return "" if output is None else str(output)
    calls = output.get("tool_calls")
    if isinstance(calls, list) and calls:
        return "; ".join(_call(c) for c in calls)
    return str(output.get("text") or "")


def _call(call: Any) -> str:
    if isinstance(call, Mapping) and "name" in call and "arguments" in call:
        return f"{call['name']} {call['arguments']}"
    return json.dumps(call, ensure_ascii=False)


def first_difference(left: str, right: str) -> tuple[int | None, str, str]:
    """(index of the first differing character, both excerpts around it); the index is None for equal texts."""
    if left == right:
        return None, _excerpt(left, 0), _excerpt(right, 0)
    shorter = min(len(left), len(right))
    at = next((i for i in range(shorter) if left[i] != right[i]), shorter)
    return at, _excerpt(left, at), _excerpt(right, at)


def _excerpt(text: str, at: int) -> str:
    start, end = max(0, at - BEFORE), at + AFTER
    return ("..." if start else "") + text[start:end] + ("..." if end < len(text) else "")
