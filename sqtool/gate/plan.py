"""What a recipe's gate can decide on the items at hand, before anything expensive runs.

Everything about "even if no answer changes" is asked of the verdict's own comparison, with the baseline in the place of
the candidate, so a plan cannot promise what the verdict then refuses (but for `early_stop: both`, whose sequence needs
more items than the fixed tests that are planned here; a note says so). Power is `sqtool.gate.power`'s: exact for
independent items with scores of 0 or 1. Elsewhere it is a plan, and the notes say in which direction it errs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from sqtool.errors import DataError
from sqtool.gate.compare import Comparison, compare, decide, items_to_decide
from sqtool.gate.intervals import is_binary
from sqtool.gate.judge import LOWEST_RELATIVE_BASELINE
from sqtool.gate.power import DISCORDANCES, GatePower, plan_gate
from sqtool.gate.records import (
    PROMPT_TOKENS,
    PairedMetric,
    PairedTask,
    TaskRecords,
    metric_slices,
    pair,
    paired_metric,
)
from sqtool.gate.spec import GateSpec, MetricRule, SliceRule
from sqtool.gate.stop_plan import StopRow, stop_rows
from sqtool.gate.stopping import harm_alpha

Counted = Literal["baseline", "items", "at_most"]


@dataclass(frozen=True)
class PlannedTask:
    """The items of one task: the baseline's records, or, with `measured` False, records that stand in for them.

    Those have an invented score of 1 on every item that a metric is known to apply to, and lack the metrics of which
    that is not known. Nothing but which items have a score is taken from them. A task that is `asked_whole` ends at
    its last item, whatever `early_stop` says.
    """

    records: TaskRecords
    measured: bool
    asked_whole: bool = False


@dataclass(frozen=True)
class MetricPlan:
    """One gated metric.

    `counted` says what `items` rests on: the `baseline`'s records and the task's `items` are exact, `at_most` is the
    task's number of items where nobody knows on which of them the metric applies. `margin` is absolute, None for a
    relative one before the baseline is known. `can_pass` is whether so many items pass if no answer changes, None
    when not known; where it is False, `items_needed` would.
    """

    metric: str
    items: int
    counted: Counted
    clusters: int
    margin: float | None
    margin_kind: Literal["absolute", "relative"]
    alpha: float
    min_items: int
    can_pass: bool | None
    items_needed: int | None

    @property
    def name(self) -> str:
        return self.metric


@dataclass(frozen=True)
class SlicePlan:
    """One slice of one gated metric. Where `can_pass` is False the verdict will say NOT_JUDGED, unless it regressed."""

    metric: str
    field: str
    value: str
    require: Literal["no_harm", "pass"]
    items: int
    can_pass: bool | None
    items_needed: int | None

    @property
    def name(self) -> str:
        """As in the verdict."""
        return f"{self.metric}[{self.field}={self.value}]"


@dataclass(frozen=True)
class GatePlan:
    """A gate's plan. `power` has a row for each gated metric and each slice that is required to pass, at each assumed
    discordance, but for those whose margin is not known yet. `tests` is how many harm tests Holm adjusts over, and
    `harm_alpha` what these share (stopping early has the rest of alpha). `stopping` says what that saves and costs."""

    metrics: tuple[MetricPlan, ...]
    slices: tuple[SlicePlan, ...]
    power: GatePower
    tests: int
    harm_alpha: float
    stopping: tuple[StopRow, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: {"tests", "harm_alpha", "metrics": [fields of MetricPlan], "slices": ["name" and fields of
        SlicePlan], "power": GatePower.to_dict(), "stopping": [StopRow.to_dict()], "notes": [text],
        "warnings": [text]}."""
        return {
            "tests": self.tests,
            "harm_alpha": self.harm_alpha,
            "metrics": [asdict(metric) for metric in self.metrics],
            "slices": [{"name": part.name, **asdict(part)} for part in self.slices],
            "power": self.power.to_dict(),
            "stopping": [row.to_dict() for row in self.stopping],
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }


def plan(spec: GateSpec, tasks: Mapping[str, PlannedTask], *, discordances: Sequence[float] = DISCORDANCES) -> GatePlan:
    """Plan the gated metrics of `spec` and their slices on the items of `tasks` (by task name; all that are needed).

    Raises what the verdict would: `DataError` for a metric that no item has, a slice field that no item has, or a
    relative margin on a baseline near 0.
    """
    metrics: list[MetricPlan] = []
    slices: list[SlicePlan] = []
    notes: dict[str, None] = {}
    tests = 0
    needed = {name.rpartition(".")[0]: None for name in spec.gated}
    paired = {task: pair(tasks[task].records, tasks[task].records) for task in needed}
    for name in spec.gated:
        rule = spec.metrics[name]
        known, task = tasks[name.rpartition(".")[0]], paired[name.rpartition(".")[0]]
        data, counted = _scores(task, name, known)
        whole = compare(data.baseline, data.baseline, data.codes, rule, spec.alpha, spec.min_items)
        _check_relative(whole, name, rule, known)
        decidable = rule.relative is None or known.measured
        metrics.append(_metric(spec, name, rule, whole, counted, decidable=decidable))
        tests += 1
        notes |= dict.fromkeys(_notes(name, rule, whole, data, known, counted))
        for part in spec.slices:
            if _must_be_measured(part, known):
                tests += len(part.bin_names())
                notes[f"slices by {part.field} are planned when the baseline is known"] = None
                continue
            for value, rows in metric_slices(task, data, part):
                same = compare(rows.baseline, rows.baseline, rows.codes, rule, spec.alpha, spec.min_items)
                can_pass, enough = _possible(same, spec, rule) if decidable else (None, None)
                slices.append(SlicePlan(name, part.field, value, part.require, same.n, can_pass, enough))
                tests += 1
    if spec.early_stop == "both":
        notes[
            "early_stop: both decides on PASS by a sequence, which needs more items; the chances are the fixed test's"
        ] = None
    refusing = harm_alpha(spec)
    power = _power(metrics, slices, tests, refusing, discordances)
    warnings = tuple(_warnings(metrics, slices))
    # Simulated, so for one metric only: the one that most items are asked for.
    whole_tasks = sorted(name for name in needed if tasks[name].asked_whole)
    if whole_tasks and spec.early_stop != "off":
        notes[f"{', '.join(whole_tasks)}: lm-eval asks its tasks whole, so none of them ends early"] = None
    known_margins = [
        (m.metric, m.items, m.margin)
        for m in metrics
        if m.margin is not None and m.metric.rpartition(".")[0] not in whole_tasks
    ]
    stopping = stop_rows(spec, sorted(known_margins, key=lambda row: -row[1])[:1])
    return GatePlan(tuple(metrics), tuple(slices), power, tests, refusing, stopping, tuple(notes), warnings)


def _scores(task: PairedTask, name: str, known: PlannedTask) -> tuple[PairedMetric, Counted]:
    metric = name.rpartition(".")[2]
    if not known.measured and metric not in known.records.scores:
        rows = np.arange(len(known.records.ids), dtype=np.int64)
        ones = np.ones(len(rows))
        return PairedMetric(ones, ones, task.codes, rows), "at_most"
    data = paired_metric(task, metric)
    if len(data.rows) == 0:
        raise DataError(known.records.path, "no item has a score", field=f"scores.{metric}")
    return data, "baseline" if known.measured else "items"


def _check_relative(whole: Comparison, name: str, rule: MetricRule, known: PlannedTask) -> None:
    if known.measured and rule.relative is not None and whole.baseline < LOWEST_RELATIVE_BASELINE:
        raise DataError(
            known.records.path,
            f"a relative margin on {name} needs a baseline mean of at least {LOWEST_RELATIVE_BASELINE}; "
            f"it is {whole.baseline:.4g}",
            remedy="Give max_drop (absolute), or choose items that the baseline can do.",
        )


def _metric(
    spec: GateSpec,
    name: str,
    rule: MetricRule,
    whole: Comparison,
    counted: Counted,
    *,
    decidable: bool,
) -> MetricPlan:
    can_pass, enough = _possible(whole, spec, rule) if decidable else (None, None)
    return MetricPlan(
        metric=name,
        items=whole.n,
        counted=counted,
        clusters=whole.clusters,
        margin=whole.margin if decidable else None,
        margin_kind="absolute" if rule.relative is None else "relative",
        alpha=whole.alpha,
        min_items=_least(spec, rule),
        can_pass=can_pass,
        items_needed=enough,
    )


def _least(spec: GateSpec, rule: MetricRule) -> int:
    return max(spec.min_items, rule.min_items or 1)


def _possible(same: Comparison, spec: GateSpec, rule: MetricRule) -> tuple[bool, int | None]:
    """(whether the items pass if no answer changes, how many would where these do not)."""
    if decide(same, 1.0, spec.alpha)[0] == "PASS":
        return True, None
    return False, items_to_decide(same, spec.alpha, 1, _least(spec, rule))


def _must_be_measured(part: SliceRule, known: PlannedTask) -> bool:
    fields = known.records.fields or ()
    return not known.measured and part.field == PROMPT_TOKENS and not any(PROMPT_TOKENS in each for each in fields)


def _notes(
    name: str, rule: MetricRule, whole: Comparison, data: PairedMetric, known: PlannedTask, counted: Counted
) -> Iterator[str]:
    if rule.relative is not None:
        yield (
            f"{name}: its margin is {100 * rule.relative:g} % of the baseline's mean, {100 * whole.margin:.2f} points; "
            "power is planned for that as an absolute margin"
            if known.measured
            else f"{name}: a relative margin is planned when the baseline is known"
        )
    if counted == "at_most":
        yield f"{name}: which items it applies to is not known beforehand; {whole.n:,} items is an upper bound"
    if whole.clusters < whole.n:
        yield (
            f"{name}: {whole.n:,} items come from {whole.clusters:,} sources (cluster); power is that of independent "
            "items, and lower where items of a source change together"
        )
    if known.measured and not is_binary(data.baseline):
        yield (
            f"{name}: scores lie between 0 and 1; discordance then means the mean squared change of a score, which is "
            "the share of changed answers where scores are 0 or 1"
        )


def _power(
    metrics: Sequence[MetricPlan],
    slices: Sequence[SlicePlan],
    tests: int,
    refusing: float,
    discordances: Sequence[float],
) -> GatePower:
    """Rows for what must pass: the metrics, and the slices with `require: pass`."""
    rules = {metric.metric: metric for metric in metrics if metric.margin is not None}
    must: list[MetricPlan | SlicePlan] = list(rules.values())
    must += [part for part in slices if part.require == "pass" and part.metric in rules]
    return plan_gate(
        {part.name: rules[part.metric].margin or 0.0 for part in must},
        {part.name: part.items for part in must},
        discordances=discordances,
        alpha={part.name: rules[part.metric].alpha for part in must},
        harm_alpha=refusing,
        family=tests,
        min_items={part.name: rules[part.metric].min_items for part in must},
    )


def _warnings(metrics: Sequence[MetricPlan], slices: Sequence[SlicePlan]) -> Iterator[str]:
    rules = {metric.metric: metric for metric in metrics}
    must: list[MetricPlan | SlicePlan] = list(metrics)
    must += [part for part in slices if part.require == "pass"]
    for part in must:
        if part.can_pass is not False:
            continue
        rule = rules[part.metric]
        need = "more items than are practical" if part.items_needed is None else f"at least {part.items_needed:,}"
        if part.items < rule.min_items:
            why = f"min_items is {rule.min_items:,}"
        else:
            why = f"a margin of {100 * (rule.margin or 0.0):.3g} points needs {need} even if no answer changes"
        yield f"the gate cannot PASS: {part.name} has {part.items:,} items, and {why}"
