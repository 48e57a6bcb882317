"""The discordance that was measured, in a pilot or in the last run, in the place of an assumed one.

Discordance is the mean squared change of a score; where scores are 0 or 1 that is the share of items whose answer
changed, and its interval is Clopper and Pearson's (1934, Biometrika 26:404-413), elsewhere the bounded score interval.
Items that share a source count as their effective number (Korn and Graubard 1998, Survey Methodology 24:193-201).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta, norm

from sqtool.gate.compare import Comparison, compare
from sqtool.gate.intervals import Floats, bounded_score, is_binary
from sqtool.gate.plan import GatePlan, MetricPlan
from sqtool.gate.power import PlanRow, joint, plan_row, power_to_pass
from sqtool.gate.records import PairedMetric, load, pair, paired_metric, task_files
from sqtool.gate.spec import GateSpec


@dataclass(frozen=True)
class MeasuredMetric:
    """One gated metric, measured on `items` items, and what that means for the evaluation that is planned.

    `lower` and `upper` bound the discordance, each wrong with probability `alpha`. `at_estimate` and `at_upper` are
    the plan at the discordance measured and at its upper bound; their `items` are those of the planned evaluation.
    """

    metric: str
    items: int
    clusters: int
    improved: int
    worsened: int
    difference: float
    discordance: float
    lower: float
    upper: float
    alpha: float
    interval: str
    at_estimate: PlanRow
    at_upper: PlanRow


@dataclass(frozen=True)
class Measured:
    """All gated metrics. `all_pass` and `all_pass_at_upper` are (lower bound, value if metrics were independent) of
    the probability that every metric, and every slice that must, passes when nothing changed."""

    metrics: tuple[MeasuredMetric, ...]
    all_pass: tuple[float, float]
    all_pass_at_upper: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: {"metrics": [fields of MeasuredMetric], "all_pass", "all_pass_at_upper": {"at_least",
        "if_independent"}}."""
        return {
            "metrics": [asdict(metric) for metric in self.metrics],
            **{
                name: {"at_least": low, "if_independent": free}
                for name, (low, free) in (("all_pass", self.all_pass), ("all_pass_at_upper", self.all_pass_at_upper))
            },
        }


def measure(spec: GateSpec, planned: GatePlan, baseline: Path, candidate: Path) -> Measured:
    """Measure on paired records (folders of `<task>.jsonl`) and plan `planned`'s evaluation with the result.

    Raises `DataError` when records do not pair or lack a gated metric.
    """
    left, right = task_files(baseline), task_files(candidate)
    tasks = {name: pair(load(left[name]), load(right[name])) for name in sorted(set(left) & set(right))}
    found = []
    for metric in planned.metrics:
        rule = spec.metrics[metric.metric]
        task, _, name = metric.metric.rpartition(".")
        data = paired_metric(tasks[task], name)
        result = compare(data.baseline, data.candidate, data.codes, rule, spec.alpha)
        found.append(_one(metric, planned, data, result))
    return Measured(
        tuple(found),
        joint(_chances(planned, found, [m.at_estimate for m in found])),
        joint(_chances(planned, found, [m.at_upper for m in found])),
    )


def _one(metric: MetricPlan, planned: GatePlan, data: PairedMetric, result: Comparison) -> MeasuredMetric:
    effect = result.interval.design_effect
    squares = (data.candidate - data.baseline) ** 2
    lower, upper, interval = discordance_interval(squares, effect, metric.alpha)
    estimate = math.fsum(squares) / len(squares)

    def row(discordance: float) -> PlanRow:
        """The plan with as many independent items as the evaluation's are worth."""
        found = plan_row(
            metric.metric,
            int(metric.items / effect),
            # A relative margin is absolute as soon as there is any baseline, be it the pilot's.
            result.margin if metric.margin is None else metric.margin,
            discordance,
            power=planned.power.power,
            alpha=metric.alpha,
            harm_alpha=planned.harm_alpha,
            family=planned.tests,
            min_items=math.ceil(metric.min_items / effect),
        )
        needed = found.items_for_power
        return replace(
            found, items=metric.items, items_for_power=None if needed is None else math.ceil(needed * effect)
        )

    return MeasuredMetric(
        metric=metric.metric,
        items=result.n,
        clusters=result.clusters,
        improved=result.improved,
        worsened=result.worsened,
        difference=result.difference,
        discordance=estimate,
        lower=lower,
        upper=upper,
        alpha=metric.alpha,
        interval=interval,
        at_estimate=row(estimate),
        at_upper=row(upper),
    )


def discordance_interval(squares: Floats, effect: float, alpha: float) -> tuple[float, float, str]:
    """(lower, upper, name of the interval) of the mean of squared changes in [0, 1], shape [n], n >= 1; `effect` is
    the design effect, how many items count as one independent one."""
    n = len(squares) / effect
    if is_binary(squares):
        count = float(squares.sum()) / effect
        lower = float(beta.ppf(alpha, count, n - count + 1)) if count > 0 else 0.0
        upper = float(beta.ppf(1 - alpha, count + 1, n - count)) if count < n else 1.0
        return lower, upper, "clopper_pearson"
    values, counts = np.unique(squares, return_counts=True)
    quantile = float(norm.ppf(1 - alpha))
    return *bounded_score(values, counts / len(squares), 0.0, 1.0, n, quantile), "bounded_score"


def _chances(planned: GatePlan, found: Sequence[MeasuredMetric], rows: Sequence[PlanRow]) -> list[float]:
    """Chance to pass of each metric and of each slice that must pass, at its metric's discordance."""
    by_name = {metric.metric: row for metric, row in zip(found, rows, strict=True)}
    least = {metric.metric: metric.min_items for metric in planned.metrics}
    chances = [row.power_to_pass for row in rows]
    for part in planned.slices:
        row = by_name[part.metric]
        if part.require == "pass":
            enough = part.items >= least[part.metric]
            chances.append(power_to_pass(part.items, row.margin, row.discordance, alpha=row.alpha) if enough else 0.0)
    return chances
