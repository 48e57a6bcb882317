"""Stopping an evaluation before its last item: what the sequence shows, and who may act on it.

The candidate's items are asked in a random order (`sequential.order`, which nobody can choose), with a look after each
batch.

- `regressed`: the evaluation ends where the betting sequence shows, for one gated metric, that the drop *exceeds* the
  margin. It spends SEQUENCE_SHARE of alpha, divided by the gated metrics; the fixed harm tests at the last item have
  the rest, so the chance of exit 1 under no change stays at most alpha. Nobody stops for a PASS, so it costs nothing.
- `both`: a task also ends where all its gated metrics have passed by the sequence, and then the sequence alone decides
  on PASS, at the last item too. Not where the gate has slices: theirs are fixed tests, which need every item.

Lengths of answers (`gen_len`) are looked at as they are recorded, as shares of `max_tokens`, and judged at the last
item as shares of the longest answer, which nobody knows before. No drop is larger on the first scale than on the
second, so one that exceeds an absolute margin here exceeds it there; for a PASS that would be the wrong way round, and
`GateSpec` refuses such a margin with `both`. A relative margin is the same on both scales.

A shown drop that is smaller than the margin never stops anything: an estimate "at or past the margin" after a few
batches is often a passing one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sqtool.errors import DataError
from sqtool.gate.expected import LOOK_EVERY
from sqtool.gate.intervals import Floats, Ints
from sqtool.gate.records import TaskRecords, load, task_files
from sqtool.gate.sequential import anytime_p, cluster_terms, order, sequence_bounds
from sqtool.gate.spec import GateSpec, MetricRule

SEQUENCE_SHARE = 0.2
ORDER_SEED = 0
"""The order is the same for every run: a seed that one could choose is a result that one could choose."""
Decision = Literal["go_on", "task", "all"]


@dataclass(frozen=True)
class Evidence:
    """What the asked items show of one metric, whenever one looks.

    `harm_p` is of "the drop is at most the margin", `pass_p` of "the drop is at least the margin" (mode both only).
    The bounds are those of the confidence sequence, on the scale of the interval in `sqtool.gate.compare`.
    """

    harm_p: float
    pass_p: float | None
    harm_alpha: float
    pass_alpha: float
    lower: float
    upper: float

    @property
    def exceeds(self) -> bool:
        """A drop beyond the margin is shown."""
        return self.harm_p <= self.harm_alpha

    @property
    def passed(self) -> bool:
        """A drop smaller than the margin is shown."""
        return self.pass_p is not None and self.pass_p <= self.pass_alpha


@dataclass(frozen=True)
class Declared:
    """What is known of a metric before anything is asked: how many clusters have it, and the largest one's size."""

    clusters: int
    largest: int


def harm_alpha(spec: GateSpec) -> float:
    """What the fixed harm tests may spend."""
    return spec.alpha if spec.early_stop == "off" else spec.alpha * (1 - SEQUENCE_SHARE)


def evidence(
    spec: GateSpec,
    rule: MetricRule,
    baseline: Floats,
    candidate: Floats,
    codes: Ints,
    declared: Declared,
    *,
    bounds: bool = True,
) -> Evidence:
    """Evidence of scores [n] in the order asked; `codes` [n] numbers their clusters 0..G-1 in that order."""
    keep = 1.0 if rule.relative is None else 1.0 - rule.relative
    left, right = (1 - baseline, 1 - candidate) if rule.direction == "lower" else (baseline, candidate)
    values = np.bincount(codes, weights=right - keep * left).astype(np.float64)
    sizes = np.bincount(codes)
    low, high = -keep, 1.0
    threshold = 0.0 if rule.absolute_margin is None else -rule.absolute_margin
    alphas = spec.alpha * SEQUENCE_SHARE / len(spec.gated), rule.alpha or spec.alpha
    harm = cluster_terms(-values, sizes, -threshold, declared.largest)
    harm_p = float(anytime_p(harm, threshold - high, threshold - low)[-1])
    pass_p = None
    if spec.early_stop == "both":
        terms = cluster_terms(values, sizes, threshold, declared.largest)
        p_values = anytime_p(terms, low - threshold, high - threshold, horizon=declared.clusters, alpha=alphas[1])
        pass_p = float(p_values[-1])
    at: dict[str, Any] = {"margin_at": threshold, "horizon": declared.clusters} if pass_p is not None else {}
    lower = upper = float("nan")
    if bounds:
        # Each side with its own error rate: the upper one refuses, the lower one passes.
        upper = sequence_bounds(values, sizes, low, high, declared.largest, alphas[0])[1]
        lower = sequence_bounds(values, sizes, low, high, declared.largest, alphas[1], **at)[0]
    return Evidence(harm_p, pass_p, *alphas, lower, upper)


def asked_order(records: TaskRecords) -> list[int]:
    """Places of the items in the order in which a candidate is asked."""
    return order(records.ids, records.clusters, ORDER_SEED)


def cluster_codes(names: Sequence[str | int | None]) -> Ints:
    """Numbers 0..G-1 of items in asked order, whose clusters are adjacent; an item without one is one of its own."""
    codes = np.empty(len(names), dtype=np.int64)
    number, last = -1, None
    for place, name in enumerate(names):
        if name is None or name != last or place == 0:
            number += 1
        codes[place], last = number, name
    return codes


def on_a_boundary(records: TaskRecords, places: Sequence[int], count: int) -> bool:
    """Whether the first `count` items asked are whole clusters."""
    if count in (0, len(places)):
        return True
    before, after = records.clusters[places[count - 1]], records.clusters[places[count]]
    return before is None or before != after


def declared_of(records: TaskRecords, metric: str, places: Sequence[int]) -> Declared:
    """From the baseline's records: which items have a metric never depends on an answer."""
    scored = ~np.isnan(records.scores[metric])
    codes = cluster_codes([records.clusters[at] for at in places if scored[at]])
    return Declared(int(codes[-1]) + 1, int(np.bincount(codes).max()))


@dataclass
class _Running:
    """A task under way: the baseline in asked order, and the candidate's scores so far."""

    records: TaskRecords
    places: list[int]
    metrics: dict[str, Declared]
    scores: dict[str, list[float]] = field(default_factory=dict)
    seen: int = 0


class Watch:
    """Looks at the candidate's records while they come in; for the evaluation, which knows nothing of the gate.

    `order` gives the order in which a task's items are to be asked. `look` gets the records that are new since the
    last look, in that order and in whole clusters, and says whether to go on. `why` says what stopped it.
    """

    every = LOOK_EVERY

    def __init__(self, spec: GateSpec, baseline: Path) -> None:
        self.spec = spec
        self.files = task_files(baseline)
        self.why: dict[str, Any] = {}
        self._tasks: dict[str, _Running] = {}

    def order(self, task: str, ids: Sequence[str]) -> list[int]:
        """Places in `ids` in asked order; a `DataError` when the baseline answered other items."""
        if task not in self.files:
            return list(range(len(ids)))
        records = load(self.files[task])
        if set(records.ids) != set(ids):
            raise DataError(
                self.files[task], "the baseline was asked other items", remedy="Run `sqtool quantize` again."
            )
        places = asked_order(records)
        gated = [name.rpartition(".")[2] for name in self.spec.gated if name.rpartition(".")[0] == task]
        metrics = {metric: declared_of(records, metric, places) for metric in gated if metric in records.scores}
        self._tasks[task] = _Running(records, places, metrics, {metric: [] for metric in metrics})
        at = {name: place for place, name in enumerate(ids)}
        return [at[records.ids[place]] for place in places]

    def look(self, task: str, new: Sequence[Mapping[str, Any]]) -> Decision:
        """After these further records."""
        running = self._tasks.get(task)
        if running is None or self.spec.early_stop == "off":
            return "go_on"
        for record in new:
            for metric, column in running.scores.items():
                if metric in record["scores"]:
                    column.append(float(record["scores"][metric]))
        running.seen += len(new)
        passed = []
        for metric, declared in running.metrics.items():
            shown = self._evidence(task, metric, running, declared)
            if shown is not None and shown.exceeds:
                self.why = {
                    "task": task,
                    "metric": f"{task}.{metric}",
                    "items": running.seen,
                    "of": len(running.places),
                }
                return "all"
            passed.append(shown is not None and shown.passed)
        return "task" if passed and all(passed) and not self.spec.slices else "go_on"

    def _evidence(self, task: str, metric: str, running: _Running, declared: Declared) -> Evidence | None:
        right = np.array(running.scores[metric], dtype=np.float64)
        if len(right) == 0:
            return None
        column = running.records.scores[metric]
        places = [at for at in running.places if not np.isnan(column[at])][: len(right)]
        codes = cluster_codes([running.records.clusters[at] for at in places])
        rule = self.spec.metrics[f"{task}.{metric}"]
        return evidence(self.spec, rule, column[places], right, codes, declared, bounds=False)
