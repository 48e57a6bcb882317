"""The A/A control: the baseline against itself, in another order, at another concurrency, after a restart.

What differs here is the engine's doing and no quantizer's. It measures nondeterminism, not sampling error, so no margin
is ever taken from it; it says whether the engine is steady enough for a verdict to mean anything:

- no answer of at least CONTROL_ITEMS differs in a single character: the engine is deterministic as far as one can see;
- otherwise the gate is INCONCLUSIVE (`unstable_engine`) when the control is REGRESSED in either direction for a gated
  metric, or the upper bound on its disagreement exceeds half the metric's margin.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.stats import beta, norm

from evals.records import said
from sqtool.errors import DataError
from sqtool.gate.compare import compare, decide
from sqtool.gate.intervals import Floats, bounded_score, is_binary
from sqtool.gate.multiplicity import holm
from sqtool.gate.records import TaskRecords, load, pair, paired_metric, task_files
from sqtool.gate.spec import GateSpec

CONTROL_ITEMS = 100


class ControlMetric(BaseModel):
    """One gated metric of the baseline against itself. `disagreement` is the mean absolute difference of the scores,
    for right and wrong the share of flips; `upper` its one-sided upper bound."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    metric: str
    items: int
    flips: int
    disagreement: float
    upper: float
    limit: float
    steady: bool
    reason: Literal["", "regressed", "disagreement_too_large"] = ""


class Control(BaseModel):
    """The control as the verdict keeps it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    items: int
    different_answers: int
    deterministic: bool
    stable: bool
    metrics: tuple[ControlMetric, ...]


def judge_control(spec: GateSpec, baseline: Mapping[str, Path], control: Path) -> Control:
    """Compare the control's records (a folder, any part of the baseline's items) with the baseline's.

    Raises `DataError` when the control has an item that the baseline was not asked.
    """
    files = {name: path for name, path in task_files(control).items() if name in baseline}
    pairs = {name: (load(baseline[name]), load(path)) for name, path in files.items()}
    different = sum(_different(*sides) for sides in pairs.values())
    items = sum(len(again.ids) for _, again in pairs.values())
    everything = sum(len(first.ids) for first, _ in pairs.values())
    deterministic = different == 0 and items >= min(CONTROL_ITEMS, everything)
    metrics = _metrics(spec, pairs, deterministic)
    stable = deterministic or all(m.steady for m in metrics)
    return Control(
        items=items, different_answers=different, deterministic=deterministic, stable=stable, metrics=tuple(metrics)
    )


def _different(first: TaskRecords, again: TaskRecords) -> int:
    """Answers that are not the same, character by character."""
    unknown = set(again.ids).difference(first.ids)
    if unknown:
        raise DataError(again.path, f"item {min(unknown)!r} is not one of the baseline's", field="id")
    at = {name: place for place, name in enumerate(first.ids)}
    left, right = first.whole(at[name] for name in again.ids), again.whole(range(len(again.ids)))
    return sum(said(left[at[name]]) != said(right[place]) for place, name in enumerate(again.ids))


def _metrics(
    spec: GateSpec, pairs: Mapping[str, tuple[TaskRecords, TaskRecords]], deterministic: bool
) -> list[ControlMetric]:
    found = []
    for name in spec.gated:
        task, _, metric = name.rpartition(".")
        if task not in pairs or any(metric not in side.scores for side in pairs[task]):
            continue
        data = paired_metric(pair(*pairs[task], part=True), metric)
        if len(data.rows) == 0:
            continue
        rule = spec.metrics[name]
        directions = ((data.baseline, data.candidate), (data.candidate, data.baseline))
        found.append((name, data, [compare(one, two, data.codes, rule, spec.alpha) for one, two in directions]))
    adjusted = iter(holm([c.harm.p_value for _, _, both in found for c in both]))
    metrics = []
    for name, data, both in found:
        regressed = "REGRESSED" in [decide(c, next(adjusted), spec.alpha)[0] for c in both]
        apart = np.abs(data.candidate - data.baseline)
        upper, limit = _upper(apart, spec.alpha), both[0].margin / 2
        steady = deterministic or not (regressed or upper > limit)
        metrics.append(
            ControlMetric(
                metric=name,
                items=len(apart),
                flips=int(np.count_nonzero(apart)),
                disagreement=float(apart.mean()),
                upper=upper,
                limit=limit,
                steady=steady,
                reason="" if steady else "regressed" if regressed else "disagreement_too_large",
            )
        )
    return metrics


def _upper(apart: Floats, alpha: float) -> float:
    """One-sided upper bound on the mean: Clopper and Pearson's for flips, the bounded score bound otherwise."""
    n = len(apart)
    if is_binary(apart):
        flips = int(apart.sum())
        return 1.0 if flips == n else float(beta.ppf(1 - alpha, flips + 1, n - flips))
    values, where = np.unique(apart, return_inverse=True)
    weights = np.bincount(where, minlength=len(values)).astype(np.float64) / n
    return bounded_score(values, weights, 0.0, 1.0, n, float(norm.ppf(1 - alpha)))[1]
